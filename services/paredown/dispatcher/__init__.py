"""The dispatcher: tells workers of due work, takes jobs from workers that are lost, keeps house."""
