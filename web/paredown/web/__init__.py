"""The web front end: Streamlit pages that speak to the API as its signed-in user, through `paredown.client` only."""
