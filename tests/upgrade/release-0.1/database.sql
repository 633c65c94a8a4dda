--
-- PostgreSQL database dump
--


-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: api_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.api_keys (
    id uuid NOT NULL,
    project_id uuid NOT NULL,
    name text NOT NULL,
    prefix text NOT NULL,
    digest bytea NOT NULL,
    scopes text[] NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone
);


--
-- Name: artifacts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.artifacts (
    id uuid NOT NULL,
    project_id uuid NOT NULL,
    job_id uuid NOT NULL,
    epoch integer NOT NULL,
    name text NOT NULL,
    model text NOT NULL,
    model_fingerprint text NOT NULL,
    model_type text NOT NULL,
    parameters bigint NOT NULL,
    recipe_hash text NOT NULL,
    recipe_name text NOT NULL,
    methods text[] NOT NULL,
    format text NOT NULL,
    size_bytes bigint NOT NULL,
    base_bytes bigint NOT NULL,
    perplexity double precision,
    base_perplexity double precision,
    protocol_hash text,
    verdict text,
    visibility text DEFAULT 'project'::text NOT NULL,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    manifest jsonb NOT NULL,
    storage_prefix text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone,
    swept_at timestamp with time zone
);


--
-- Name: baselines; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.baselines (
    model_fingerprint text NOT NULL,
    protocol_hash text NOT NULL,
    dtype text NOT NULL,
    device_kind text NOT NULL,
    evaluation jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: datasets; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.datasets (
    id uuid NOT NULL,
    project_id uuid NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    size_bytes bigint NOT NULL,
    storage_key text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: idempotency_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_keys (
    project_id uuid NOT NULL,
    key text NOT NULL,
    request_hash text NOT NULL,
    job_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: job_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_events (
    job_id uuid NOT NULL,
    seq integer NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    type text NOT NULL,
    data jsonb NOT NULL,
    "position" bigint DEFAULT ((pg_current_xact_id())::text)::bigint NOT NULL
)
PARTITION BY RANGE (at);


--
-- Name: job_events_default; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_events_default (
    job_id uuid CONSTRAINT job_events_job_id_not_null NOT NULL,
    seq integer CONSTRAINT job_events_seq_not_null NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() CONSTRAINT job_events_at_not_null NOT NULL,
    type text CONSTRAINT job_events_type_not_null NOT NULL,
    data jsonb CONSTRAINT job_events_data_not_null NOT NULL,
    "position" bigint DEFAULT ((pg_current_xact_id())::text)::bigint CONSTRAINT job_events_position_not_null NOT NULL
);


--
-- Name: job_events_y2026m11; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_events_y2026m11 (
    job_id uuid CONSTRAINT job_events_job_id_not_null NOT NULL,
    seq integer CONSTRAINT job_events_seq_not_null NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() CONSTRAINT job_events_at_not_null NOT NULL,
    type text CONSTRAINT job_events_type_not_null NOT NULL,
    data jsonb CONSTRAINT job_events_data_not_null NOT NULL,
    "position" bigint DEFAULT ((pg_current_xact_id())::text)::bigint CONSTRAINT job_events_position_not_null NOT NULL
);


--
-- Name: job_events_y2026m12; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_events_y2026m12 (
    job_id uuid CONSTRAINT job_events_job_id_not_null NOT NULL,
    seq integer CONSTRAINT job_events_seq_not_null NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() CONSTRAINT job_events_at_not_null NOT NULL,
    type text CONSTRAINT job_events_type_not_null NOT NULL,
    data jsonb CONSTRAINT job_events_data_not_null NOT NULL,
    "position" bigint DEFAULT ((pg_current_xact_id())::text)::bigint CONSTRAINT job_events_position_not_null NOT NULL
);


--
-- Name: job_events_y2027m01; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_events_y2027m01 (
    job_id uuid CONSTRAINT job_events_job_id_not_null NOT NULL,
    seq integer CONSTRAINT job_events_seq_not_null NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() CONSTRAINT job_events_at_not_null NOT NULL,
    type text CONSTRAINT job_events_type_not_null NOT NULL,
    data jsonb CONSTRAINT job_events_data_not_null NOT NULL,
    "position" bigint DEFAULT ((pg_current_xact_id())::text)::bigint CONSTRAINT job_events_position_not_null NOT NULL
);


--
-- Name: jobs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.jobs (
    id uuid NOT NULL,
    project_id uuid NOT NULL,
    state text DEFAULT 'queued'::text NOT NULL,
    phase text,
    progress jsonb,
    spec jsonb NOT NULL,
    model text NOT NULL,
    recipe_hash text NOT NULL,
    recipe_name text NOT NULL,
    pool text NOT NULL,
    priority integer DEFAULT 0 NOT NULL,
    epoch integer DEFAULT 0 NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    last_seq integer DEFAULT 0 NOT NULL,
    cancel_requested boolean DEFAULT false NOT NULL,
    worker text,
    claimed_at timestamp with time zone,
    lease_until timestamp with time zone,
    error jsonb,
    run_at timestamp with time zone DEFAULT now() NOT NULL,
    deadline_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    worker_seconds double precision DEFAULT '0'::double precision NOT NULL,
    CONSTRAINT jobs_cancel_is_heeded CHECK (((NOT cancel_requested) OR (state = ANY (ARRAY['running'::text, 'cancelled'::text])))),
    CONSTRAINT jobs_claimed_while_running CHECK (((state = 'running'::text) = (claimed_at IS NOT NULL))),
    CONSTRAINT jobs_error_when_failed CHECK (((state = 'failed'::text) = (error IS NOT NULL))),
    CONSTRAINT jobs_finished_at_when_terminal CHECK (((state = ANY (ARRAY['queued'::text, 'running'::text])) = (finished_at IS NULL))),
    CONSTRAINT jobs_lease_while_running CHECK (((state = 'running'::text) = (lease_until IS NOT NULL))),
    CONSTRAINT jobs_state_known CHECK ((state = ANY (ARRAY['queued'::text, 'running'::text, 'succeeded'::text, 'rejected'::text, 'failed'::text, 'cancelled'::text])))
);


--
-- Name: models; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.models (
    id uuid NOT NULL,
    project_id uuid NOT NULL,
    uri text NOT NULL,
    revision text NOT NULL,
    fingerprint text NOT NULL,
    model_type text NOT NULL,
    parameters bigint NOT NULL,
    config jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: projects; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.projects (
    id uuid NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: job_events_default; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events ATTACH PARTITION public.job_events_default DEFAULT;


--
-- Name: job_events_y2026m11; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events ATTACH PARTITION public.job_events_y2026m11 FOR VALUES FROM ('2026-11-01 00:00:00+00') TO ('2026-12-01 00:00:00+00');


--
-- Name: job_events_y2026m12; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events ATTACH PARTITION public.job_events_y2026m12 FOR VALUES FROM ('2026-12-01 00:00:00+00') TO ('2027-01-01 00:00:00+00');


--
-- Name: job_events_y2027m01; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events ATTACH PARTITION public.job_events_y2027m01 FOR VALUES FROM ('2027-01-01 00:00:00+00') TO ('2027-02-01 00:00:00+00');


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.alembic_version VALUES ('0001');


--
-- Data for Name: api_keys; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.api_keys VALUES ('4661e9c3-a71d-4e0e-9de3-9761a3e1be25', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'first key', 'pare_85341ef2', '\x4d6d41aec4f640f609c2c18240eac7da3ad11a7c84ef0b107356a9b750c71008', '{jobs:read,jobs:write,artifacts:read,artifacts:write,datasets:read,datasets:write,keys:admin}', '2026-11-22 03:11:30.232017+00', NULL, NULL, NULL);


--
-- Data for Name: artifacts; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.artifacts VALUES ('a782ff01-ca07-4791-af73-ab388e82422a', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'ec340342-d9aa-4777-8c19-4ba7b17c9b61', 1, 'round', 'file:///tmp/pare-release-_mt130y2/models/tiny', '90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8', 'llama', 108864, '2d2d2d488c47c727a0129ab67cbd3f725af39af803dcf2a7997d57f137abd448', 'rtn-4', '{rtn}', 'compressed-tensors', 114760, 217728, 287.2613569609611, 286.35875062543255, '18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a', NULL, 'project', '{first}', '{"base": {"uri": "file:///tmp/pare-release-_mt130y2/models/tiny", "revision": "90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8", "base_bytes": 217728, "model_type": "llama", "parameters": 108864, "fingerprint": "90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8"}, "dtype": "float32", "files": [{"path": "config.json", "sha256": "601c0fe2bfb1744f20b7a3dd763e73f0df02180f55c66befc967aae79a8f0376", "size_bytes": 1426}, {"path": "generation_config.json", "sha256": "1113738beda64787778c7058b7689d0b4fc2e402c0c5b552916168a0e551a393", "size_bytes": 195}, {"path": "model.safetensors", "sha256": "6107c99e6a98359a4579c979c8b1ebe38d8725b3927f2095431e66ac4bded22d", "size_bytes": 114760}, {"path": "tokenizer.json", "sha256": "af351f875c4236064093a2e72bf12966b3ea82614163447463bc0cf12244f5a4", "size_bytes": 4842}, {"path": "tokenizer_config.json", "sha256": "401a59654e869025b49d7ebb6b74c5618fe36a71522770e6b447efdeab1bf089", "size_bytes": 87}], "tools": {"gguf": "0.19.0", "numpy": "2.4.6", "torch": "2.13.0+cpu", "python": "3.11.7", "paredown": "0.1.0", "tokenizers": "0.23.3", "safetensors": "0.8.0", "transformers": "5.23.0", "compressed-tensors": "0.20.0"}, "format": "compressed-tensors", "job_id": "ec340342-d9aa-4777-8c19-4ba7b17c9b61", "recipe": [{"bits": 4, "skip": [], "method": "rtn", "version": 1, "symmetric": true, "group_size": 64, "scale_search": "least_squares"}], "report": {"base": {"cached": false, "device": "cpu", "seconds": 0.032, "protocol": {"dtype": "float32", "metric": "token_perplexity", "source": "builtin://python-docs", "samples": 4, "version": 1, "tokens_sha256": "f8a08d2fb277774e4de4a1f9b7ac069dc66fc11de7abf4fde0e70fef5fb4417b", "sequence_length": 64}, "perplexity": 286.35875062543255, "protocol_hash": "18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a", "predicted_tokens": 252}, "cost": {"job": 0.0006353539757499979, "currency": "USD", "job_seconds": 22.87274312699992, "price_per_hour": 0.1, "base_per_million_tokens": null, "artifact_per_million_tokens": null}, "gate": null, "layers": [{"bits": 4.25, "name": "model.layers.0.self_attn.q_proj", "error": null, "zeros": 532, "weights": 4096}, {"bits": 4.25, "name": "model.layers.0.self_attn.k_proj", "error": null, "zeros": 303, "weights": 2048}, {"bits": 4.25, "name": "model.layers.0.self_attn.v_proj", "error": null, "zeros": 261, "weights": 2048}, {"bits": 4.25, "name": "model.layers.0.self_attn.o_proj", "error": null, "zeros": 509, "weights": 4096}, {"bits": 4.25, "name": "model.layers.0.mlp.gate_proj", "error": null, "zeros": 987, "weights": 8192}, {"bits": 4.25, "name": "model.layers.0.mlp.up_proj", "error": null, "zeros": 1094, "weights": 8192}, {"bits": 4.25, "name": "model.layers.0.mlp.down_proj", "error": null, "zeros": 1084, "weights": 8192}, {"bits": 4.25, "name": "model.layers.1.self_attn.q_proj", "error": null, "zeros": 531, "weights": 4096}, {"bits": 4.25, "name": "model.layers.1.self_attn.k_proj", "error": null, "zeros": 266, "weights": 2048}, {"bits": 4.25, "name": "model.layers.1.self_attn.v_proj", "error": null, "zeros": 261, "weights": 2048}, {"bits": 4.25, "name": "model.layers.1.self_attn.o_proj", "error": null, "zeros": 567, "weights": 4096}, {"bits": 4.25, "name": "model.layers.1.mlp.gate_proj", "error": null, "zeros": 991, "weights": 8192}, {"bits": 4.25, "name": "model.layers.1.mlp.up_proj", "error": null, "zeros": 1051, "weights": 8192}, {"bits": 4.25, "name": "model.layers.1.mlp.down_proj", "error": null, "zeros": 1044, "weights": 8192}], "speeds": {}, "artifact": {"cached": false, "device": "cpu", "seconds": 0.182, "protocol": {"dtype": "float32", "metric": "token_perplexity", "source": "builtin://python-docs", "samples": 4, "version": 1, "tokens_sha256": "f8a08d2fb277774e4de4a1f9b7ac069dc66fc11de7abf4fde0e70fef5fb4417b", "sequence_length": 64}, "perplexity": 287.2613569609611, "protocol_hash": "18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a", "predicted_tokens": 252}, "runtimes": [{"loads": true, "detail": null, "sample": "\"else\" clause\n==���P!", "runtime": "transformers", "version": "5.23.0", "perplexity": 287.2613759855298}, {"loads": false, "detail": "Not tried here. vLLM reads this format in 4 and 8 bits, on a GPU.", "sample": null, "runtime": "vllm", "version": "", "perplexity": null}, {"loads": false, "detail": "llama.cpp reads GGUF, a format that this release does not write.", "sample": null, "runtime": "llama.cpp", "version": "", "perplexity": null}], "sparsity": 0.1285942925347222, "warnings": [], "base_bytes": 217728, "size_bytes": 114760, "average_bits": 4.25, "phase_seconds": {"prove": 9.022, "write": 0.053, "compress": 0.645, "evaluate_base": 0.078, "evaluate_artifact": 0.182}, "peak_memory_bytes": 413380608}, "isolation": {"notes": ["stays root: an unprivileged user cannot read /work/main/.venv/bin/python"], "non_root": false, "no_network": true, "process_group": true, "empty_environment": true, "no_new_privileges": true}, "created_at": "2026-11-22T03:11:58.239164Z", "evaluation": {"speed": false, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "artifact_id": "a782ff01-ca07-4791-af73-ab388e82422a", "calibration": null, "recipe_hash": "2d2d2d488c47c727a0129ab67cbd3f725af39af803dcf2a7997d57f137abd448", "schema_version": 1, "calibration_tokens_sha256": null}', 'artifacts/ec340342-d9aa-4777-8c19-4ba7b17c9b61/1', '2026-11-22 03:11:58.403297+00', NULL, NULL);
INSERT INTO public.artifacts VALUES ('dda0b341-6333-4cea-a53a-874c8965e868', 'a1b5adde-24bc-4aa4-999a-df479d075965', '54bfb666-5dd1-47c5-abdb-0af952add646', 1, 'tiny wanda-50% + gptq-3', 'file:///tmp/pare-release-_mt130y2/models/tiny', '90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8', 'llama', 108864, '01bdef09ef3d461289a9062f84e323cdce19ead2ebd98a944009703d65cab895', 'wanda-50% + gptq-3', '{wanda,gptq}', 'compressed-tensors', 105512, 217728, 281.47095635077073, 286.35875062543255, '18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a', 'missed', 'project', '{}', '{"base": {"uri": "file:///tmp/pare-release-_mt130y2/models/tiny", "revision": "90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8", "base_bytes": 217728, "model_type": "llama", "parameters": 108864, "fingerprint": "90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8"}, "dtype": "float32", "files": [{"path": "config.json", "sha256": "6a7ad0a7d26958ebb1702d8301677e95af81720c41d2545cc15bc653474637cf", "size_bytes": 1426}, {"path": "generation_config.json", "sha256": "1113738beda64787778c7058b7689d0b4fc2e402c0c5b552916168a0e551a393", "size_bytes": 195}, {"path": "model.safetensors", "sha256": "338a04f03f225b51bafd4af2eacfe923708925824e7c3173094965d19e546743", "size_bytes": 105512}, {"path": "tokenizer.json", "sha256": "af351f875c4236064093a2e72bf12966b3ea82614163447463bc0cf12244f5a4", "size_bytes": 4842}, {"path": "tokenizer_config.json", "sha256": "401a59654e869025b49d7ebb6b74c5618fe36a71522770e6b447efdeab1bf089", "size_bytes": 87}], "tools": {"gguf": "0.19.0", "numpy": "2.4.6", "torch": "2.13.0+cpu", "python": "3.11.7", "paredown": "0.1.0", "tokenizers": "0.23.3", "safetensors": "0.8.0", "transformers": "5.23.0", "compressed-tensors": "0.20.0"}, "format": "compressed-tensors", "job_id": "54bfb666-5dd1-47c5-abdb-0af952add646", "recipe": [{"skip": [], "method": "wanda", "pattern": null, "version": 1, "sparsity": 0.5}, {"bits": 3, "skip": [], "method": "gptq", "damping": 0.01, "version": 1, "symmetric": true, "group_size": 64, "scale_search": "least_squares", "activation_order": true}], "report": {"base": {"cached": true, "device": "cpu", "seconds": 0.032, "protocol": {"dtype": "float32", "metric": "token_perplexity", "source": "builtin://python-docs", "samples": 4, "version": 1, "tokens_sha256": "f8a08d2fb277774e4de4a1f9b7ac069dc66fc11de7abf4fde0e70fef5fb4417b", "sequence_length": 64}, "perplexity": 286.35875062543255, "protocol_hash": "18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a", "predicted_tokens": 252}, "cost": {"job": 0.0007137966616111145, "currency": "USD", "job_seconds": 25.69667981800012, "price_per_hour": 0.1, "base_per_million_tokens": null, "artifact_per_million_tokens": null}, "gate": {"checks": [{"limit": 0.01, "value": 0.48460464432686656, "figure": "size_ratio", "passed": false}], "verdict": "missed"}, "layers": [{"bits": 3.25, "name": "model.layers.0.self_attn.q_proj", "error": 0.08038906687863591, "zeros": 2072, "weights": 4096}, {"bits": 3.25, "name": "model.layers.0.self_attn.k_proj", "error": 0.07907419366244815, "zeros": 1031, "weights": 2048}, {"bits": 3.25, "name": "model.layers.0.self_attn.v_proj", "error": 0.0730997651034991, "zeros": 1034, "weights": 2048}, {"bits": 3.25, "name": "model.layers.0.self_attn.o_proj", "error": 0.05001348767332594, "zeros": 2067, "weights": 4096}, {"bits": 3.25, "name": "model.layers.0.mlp.gate_proj", "error": 0.08862142036272384, "zeros": 4135, "weights": 8192}, {"bits": 3.25, "name": "model.layers.0.mlp.up_proj", "error": 0.08229512110216916, "zeros": 4141, "weights": 8192}, {"bits": 3.25, "name": "model.layers.0.mlp.down_proj", "error": 0.06717567660099973, "zeros": 4158, "weights": 8192}, {"bits": 3.25, "name": "model.layers.1.self_attn.q_proj", "error": 0.09220885812436942, "zeros": 2068, "weights": 4096}, {"bits": 3.25, "name": "model.layers.1.self_attn.k_proj", "error": 0.07954493582688647, "zeros": 1034, "weights": 2048}, {"bits": 3.25, "name": "model.layers.1.self_attn.v_proj", "error": 0.07468005058061088, "zeros": 1031, "weights": 2048}, {"bits": 3.25, "name": "model.layers.1.self_attn.o_proj", "error": 0.0548617978967042, "zeros": 2073, "weights": 4096}, {"bits": 3.25, "name": "model.layers.1.mlp.gate_proj", "error": 0.08447932175077288, "zeros": 4126, "weights": 8192}, {"bits": 3.25, "name": "model.layers.1.mlp.up_proj", "error": 0.08383400757201792, "zeros": 4132, "weights": 8192}, {"bits": 3.25, "name": "model.layers.1.mlp.down_proj", "error": 0.06020074449243027, "zeros": 4180, "weights": 8192}], "speeds": {}, "artifact": {"cached": false, "device": "cpu", "seconds": 0.376, "protocol": {"dtype": "float32", "metric": "token_perplexity", "source": "builtin://python-docs", "samples": 4, "version": 1, "tokens_sha256": "f8a08d2fb277774e4de4a1f9b7ac069dc66fc11de7abf4fde0e70fef5fb4417b", "sequence_length": 64}, "perplexity": 281.47095635077073, "protocol_hash": "18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a", "predicted_tokens": 252}, "runtimes": [{"loads": true, "detail": null, "sample": "\"else\" clause\n==���P!", "runtime": "transformers", "version": "5.23.0", "perplexity": 281.4709659376145}, {"loads": false, "detail": "Not tried here. vLLM''s kernels read this format in 4 and 8 bits; 3 bits are for transformers.", "sample": null, "runtime": "vllm", "version": "", "perplexity": null}, {"loads": false, "detail": "llama.cpp reads GGUF, a format that this release does not write.", "sample": null, "runtime": "llama.cpp", "version": "", "perplexity": null}], "sparsity": 0.5056694878472222, "warnings": [], "base_bytes": 217728, "size_bytes": 105512, "average_bits": 3.25, "phase_seconds": {"prove": 11.849, "write": 0.51, "compress": 1.202, "evaluate_base": 0.0, "evaluate_artifact": 0.376}, "peak_memory_bytes": 504356864}, "isolation": {"notes": ["stays root: an unprivileged user cannot read /work/main/.venv/bin/python"], "non_root": false, "no_network": true, "process_group": true, "empty_environment": true, "no_new_privileges": true}, "created_at": "2026-11-22T03:12:24.414847Z", "evaluation": {"speed": false, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "artifact_id": "dda0b341-6333-4cea-a53a-874c8965e868", "calibration": {"seed": 0, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "recipe_hash": "01bdef09ef3d461289a9062f84e323cdce19ead2ebd98a944009703d65cab895", "schema_version": 1, "calibration_tokens_sha256": "612991c7da027331051629c29cd04e47d31aa01f422b74b1fbccd03939e262d8"}', 'artifacts/54bfb666-5dd1-47c5-abdb-0af952add646/1', '2026-11-22 03:12:24.488089+00', NULL, NULL);


--
-- Data for Name: baselines; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.baselines VALUES ('90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8', '18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a', 'float32', 'cpu', '{"cached": false, "device": "cpu", "seconds": 0.032, "protocol": {"dtype": "float32", "metric": "token_perplexity", "source": "builtin://python-docs", "samples": 4, "version": 1, "tokens_sha256": "f8a08d2fb277774e4de4a1f9b7ac069dc66fc11de7abf4fde0e70fef5fb4417b", "sequence_length": 64}, "perplexity": 286.35875062543255, "protocol_hash": "18d4119a65d7fdeed33309dd0969d9362bc4d37dba93aff79176585ab49f089a", "predicted_tokens": 252}', '2026-11-22 03:11:58.200689+00');


--
-- Data for Name: datasets; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: idempotency_keys; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: job_events_default; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: job_events_y2026m11; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 1, '2026-11-22 03:11:30.289427+00', 'queued', '{"pool": "cpu"}', 756);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 1, '2026-11-22 03:11:30.298361+00', 'queued', '{"pool": "cpu"}', 757);
INSERT INTO public.job_events_y2026m11 VALUES ('4c1c7568-457a-4e00-a925-6305e45fd366', 1, '2026-11-22 03:11:30.302533+00', 'queued', '{"pool": "cpu"}', 758);
INSERT INTO public.job_events_y2026m11 VALUES ('c3f607c1-da38-472e-aefe-4d2e51a2e6c0', 1, '2026-11-22 03:11:30.307384+00', 'queued', '{"pool": "cpu"}', 759);
INSERT INTO public.job_events_y2026m11 VALUES ('60d8a79b-9761-4c53-b7f9-959d6a0ea915', 1, '2026-11-22 03:11:30.311544+00', 'queued', '{"pool": "cpu"}', 760);
INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 2, '2026-11-22 03:11:36.119997+00', 'claimed', '{"epoch": 1, "worker": "vm:20550"}', 763);
INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 3, '2026-11-22 03:11:36.399471+00', 'progress', '{"block": null, "phase": "fetch", "message": "fetching file:///tmp/pare-release-_mt130y2/models/tiny", "fraction": 0.0, "num_blocks": null, "eta_seconds": null}', 764);
INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 4, '2026-11-22 03:11:36.739916+00', 'progress', '{"block": null, "phase": "check", "message": "", "fraction": 0.02, "num_blocks": null, "eta_seconds": null}', 766);
INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 5, '2026-11-22 03:11:48.171499+00', 'progress', '{"block": null, "phase": "compress", "message": "compressing", "fraction": 0.02, "num_blocks": null, "eta_seconds": null}', 776);
INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 6, '2026-11-22 03:11:48.69724+00', 'progress', '{"block": null, "phase": "evaluate", "message": "measuring the base", "fraction": 0.4184899328859061, "num_blocks": null, "eta_seconds": 1.0}', 777);
INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 7, '2026-11-22 03:11:58.347524+00', 'progress', '{"block": null, "phase": "upload", "message": "", "fraction": 0.97, "num_blocks": null, "eta_seconds": null}', 787);
INSERT INTO public.job_events_y2026m11 VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 8, '2026-11-22 03:11:58.557369+00', 'succeeded', '{"verdict": null, "artifact_id": "a782ff01-ca07-4791-af73-ab388e82422a"}', 788);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 2, '2026-11-22 03:11:58.732586+00', 'claimed', '{"epoch": 1, "worker": "vm:20550"}', 789);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 3, '2026-11-22 03:11:58.869018+00', 'progress', '{"block": null, "phase": "fetch", "message": "fetching file:///tmp/pare-release-_mt130y2/models/tiny", "fraction": 0.0, "num_blocks": null, "eta_seconds": null}', 790);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 4, '2026-11-22 03:11:59.03503+00', 'progress', '{"block": null, "phase": "check", "message": "", "fraction": 0.02, "num_blocks": null, "eta_seconds": null}', 792);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 5, '2026-11-22 03:12:10.323395+00', 'progress', '{"block": null, "phase": "compress", "message": "compressing", "fraction": 0.02, "num_blocks": null, "eta_seconds": null}', 803);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 6, '2026-11-22 03:12:11.459453+00', 'progress', '{"block": 1, "phase": "compress", "message": "compressing", "fraction": 0.10321927183137147, "num_blocks": 2, "eta_seconds": 10.5}', 804);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 7, '2026-11-22 03:12:12.031446+00', 'progress', '{"block": null, "phase": "evaluate", "message": "measuring the base", "fraction": 0.3164686558992609, "num_blocks": null, "eta_seconds": 3.8}', 805);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 8, '2026-11-22 03:12:24.485821+00', 'progress', '{"block": null, "phase": "upload", "message": "", "fraction": 0.97, "num_blocks": null, "eta_seconds": null}', 817);
INSERT INTO public.job_events_y2026m11 VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 9, '2026-11-22 03:12:24.495283+00', 'rejected', '{"verdict": "missed", "artifact_id": "dda0b341-6333-4cea-a53a-874c8965e868"}', 818);
INSERT INTO public.job_events_y2026m11 VALUES ('4c1c7568-457a-4e00-a925-6305e45fd366', 2, '2026-11-22 03:12:24.60856+00', 'claimed', '{"epoch": 1, "worker": "vm:20550"}', 819);
INSERT INTO public.job_events_y2026m11 VALUES ('4c1c7568-457a-4e00-a925-6305e45fd366', 3, '2026-11-22 03:12:24.61929+00', 'progress', '{"block": null, "phase": "fetch", "message": "fetching file:///tmp/pare-release-_mt130y2/models/tiny-absent", "fraction": 0.0, "num_blocks": null, "eta_seconds": null}', 820);
INSERT INTO public.job_events_y2026m11 VALUES ('4c1c7568-457a-4e00-a925-6305e45fd366', 4, '2026-11-22 03:12:24.628192+00', 'failed', '{"error": {"code": "source_not_found", "field": "model", "detail": "file:///tmp/pare-release-_mt130y2/models/tiny-absent does not exist.", "retryable": false}}', 821);
INSERT INTO public.job_events_y2026m11 VALUES ('c3f607c1-da38-472e-aefe-4d2e51a2e6c0', 2, '2026-11-22 03:12:24.926957+00', 'cancelled', '{}', 822);


--
-- Data for Name: job_events_y2026m12; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: job_events_y2027m01; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: jobs; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.jobs VALUES ('60d8a79b-9761-4c53-b7f9-959d6a0ea915', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'queued', NULL, NULL, '{"name": null, "pool": null, "tags": [], "dtype": "float32", "model": "file:///tmp/pare-release-_mt130y2/models/tiny", "budget": null, "format": "auto", "recipe": [{"bits": 4, "skip": [], "method": "gptq", "damping": 0.01, "version": 1, "symmetric": true, "group_size": 64, "scale_search": "least_squares", "activation_order": true}], "run_at": "2099-01-01T00:00:00Z", "priority": 0, "evaluation": {"speed": false, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "calibration": {"seed": 0, "source": "builtin://python-docs", "samples": 16, "sequence_length": 128}, "deadline_at": null}', 'file:///tmp/pare-release-_mt130y2/models/tiny', 'd1c41b132f9c10d1802a2185e388ab1edc36ca23683643705526fdd9cf088432', 'gptq-4', 'cpu', 0, 0, 0, 1, false, NULL, NULL, NULL, NULL, '2099-01-01 00:00:00+00', NULL, '2026-11-22 03:11:30.309805+00', NULL, NULL, 0);
INSERT INTO public.jobs VALUES ('4c1c7568-457a-4e00-a925-6305e45fd366', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'failed', 'fetch', '{"block": null, "phase": "fetch", "message": "fetching file:///tmp/pare-release-_mt130y2/models/tiny-absent", "fraction": 0.0, "num_blocks": null, "eta_seconds": null}', '{"name": null, "pool": null, "tags": [], "dtype": "float32", "model": "file:///tmp/pare-release-_mt130y2/models/tiny-absent", "budget": null, "format": "auto", "recipe": [{"bits": 4, "skip": [], "method": "gptq", "damping": 0.01, "version": 1, "symmetric": true, "group_size": 64, "scale_search": "least_squares", "activation_order": true}], "run_at": null, "priority": 0, "evaluation": {"speed": false, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "calibration": {"seed": 0, "source": "builtin://python-docs", "samples": 16, "sequence_length": 128}, "deadline_at": null}', 'file:///tmp/pare-release-_mt130y2/models/tiny-absent', 'd1c41b132f9c10d1802a2185e388ab1edc36ca23683643705526fdd9cf088432', 'gptq-4', 'cpu', 0, 1, 0, 4, false, 'vm:20550', NULL, NULL, '{"code": "source_not_found", "field": "model", "detail": "file:///tmp/pare-release-_mt130y2/models/tiny-absent does not exist.", "retryable": false}', '2026-11-22 03:11:30.300891+00', NULL, '2026-11-22 03:11:30.300891+00', '2026-11-22 03:12:24.58329+00', '2026-11-22 03:12:24.620899+00', 0.037609);
INSERT INTO public.jobs VALUES ('c3f607c1-da38-472e-aefe-4d2e51a2e6c0', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'cancelled', NULL, NULL, '{"name": null, "pool": null, "tags": [], "dtype": "float32", "model": "file:///tmp/pare-release-_mt130y2/models/tiny", "budget": null, "format": "auto", "recipe": [{"bits": 4, "skip": [], "method": "gptq", "damping": 0.01, "version": 1, "symmetric": true, "group_size": 64, "scale_search": "least_squares", "activation_order": true}], "run_at": "2099-01-01T00:00:00Z", "priority": 0, "evaluation": {"speed": false, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "calibration": {"seed": 0, "source": "builtin://python-docs", "samples": 16, "sequence_length": 128}, "deadline_at": null}', 'file:///tmp/pare-release-_mt130y2/models/tiny', 'd1c41b132f9c10d1802a2185e388ab1edc36ca23683643705526fdd9cf088432', 'gptq-4', 'cpu', 0, 0, 0, 2, false, NULL, NULL, NULL, NULL, '2099-01-01 00:00:00+00', NULL, '2026-11-22 03:11:30.305471+00', NULL, '2026-11-22 03:12:24.849323+00', 0);
INSERT INTO public.jobs VALUES ('ec340342-d9aa-4777-8c19-4ba7b17c9b61', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'succeeded', 'upload', '{"block": null, "phase": "upload", "message": "", "fraction": 0.97, "num_blocks": null, "eta_seconds": null}', '{"name": "round", "pool": null, "tags": ["first"], "dtype": "float32", "model": "file:///tmp/pare-release-_mt130y2/models/tiny", "budget": null, "format": "auto", "recipe": [{"bits": 4, "skip": [], "method": "rtn", "version": 1, "symmetric": true, "group_size": 64, "scale_search": "least_squares"}], "run_at": null, "priority": 0, "evaluation": {"speed": false, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "calibration": {"seed": 0, "source": "builtin://python-docs", "samples": 16, "sequence_length": 128}, "deadline_at": null}', 'file:///tmp/pare-release-_mt130y2/models/tiny', '2d2d2d488c47c727a0129ab67cbd3f725af39af803dcf2a7997d57f137abd448', 'rtn-4', 'cpu', 0, 1, 0, 8, false, 'vm:20550', NULL, NULL, NULL, '2026-11-22 03:11:30.284202+00', NULL, '2026-11-22 03:11:30.284202+00', '2026-11-22 03:11:35.889421+00', '2026-11-22 03:11:58.403297+00', 22.513876);
INSERT INTO public.jobs VALUES ('54bfb666-5dd1-47c5-abdb-0af952add646', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'rejected', 'upload', '{"block": null, "phase": "upload", "message": "", "fraction": 0.97, "num_blocks": null, "eta_seconds": null}', '{"name": null, "pool": null, "tags": [], "dtype": "float32", "model": "file:///tmp/pare-release-_mt130y2/models/tiny", "budget": {"max_size_ratio": 0.01, "max_perplexity_increase": null}, "format": "auto", "recipe": [{"skip": [], "method": "wanda", "pattern": null, "version": 1, "sparsity": 0.5}, {"bits": 3, "skip": [], "method": "gptq", "damping": 0.01, "version": 1, "symmetric": true, "group_size": 64, "scale_search": "least_squares", "activation_order": true}], "run_at": null, "priority": 0, "evaluation": {"speed": false, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "calibration": {"seed": 0, "source": "builtin://python-docs", "samples": 4, "sequence_length": 64}, "deadline_at": null}', 'file:///tmp/pare-release-_mt130y2/models/tiny', '01bdef09ef3d461289a9062f84e323cdce19ead2ebd98a944009703d65cab895', 'wanda-50% + gptq-3', 'cpu', 0, 1, 0, 9, false, 'vm:20550', NULL, NULL, NULL, '2026-11-22 03:11:30.296443+00', NULL, '2026-11-22 03:11:30.296443+00', '2026-11-22 03:11:58.719133+00', '2026-11-22 03:12:24.488089+00', 25.768956);


--
-- Data for Name: models; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.models VALUES ('6e51d875-cbae-48c7-97f4-56182c946102', 'a1b5adde-24bc-4aa4-999a-df479d075965', 'file:///tmp/pare-release-_mt130y2/models/tiny', '90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8', '90da00bd1e883b79f7783ca2fd380994201c2f1fc2779961482d5d8559e35cd8', 'llama', 108864, '{"dtype": "bfloat16", "head_dim": 16, "mlp_bias": false, "use_cache": true, "hidden_act": "silu", "model_type": "llama", "vocab_size": 272, "hidden_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null, "rms_norm_eps": 0.000001, "architectures": ["LlamaForCausalLM"], "attention_bias": false, "pretraining_tp": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "attention_dropout": 0.0, "initializer_range": 0.02, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": false, "transformers_version": "5.23.0", "max_position_embeddings": 256}', '2026-11-22 03:11:36.465692+00', '2026-11-22 03:11:58.834994+00');


--
-- Data for Name: projects; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.projects VALUES ('a1b5adde-24bc-4aa4-999a-df479d075965', 'default', '2026-11-22 03:11:30.232017+00');


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: api_keys api_keys_digest_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_digest_key UNIQUE (digest);


--
-- Name: api_keys api_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);


--
-- Name: artifacts artifacts_one_per_job; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.artifacts
    ADD CONSTRAINT artifacts_one_per_job UNIQUE (job_id);


--
-- Name: artifacts artifacts_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.artifacts
    ADD CONSTRAINT artifacts_pkey PRIMARY KEY (id);


--
-- Name: baselines baselines_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.baselines
    ADD CONSTRAINT baselines_pkey PRIMARY KEY (model_fingerprint, protocol_hash, dtype, device_kind);


--
-- Name: datasets datasets_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.datasets
    ADD CONSTRAINT datasets_pkey PRIMARY KEY (id);


--
-- Name: idempotency_keys idempotency_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (project_id, key);


--
-- Name: job_events job_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events
    ADD CONSTRAINT job_events_pkey PRIMARY KEY (job_id, seq, at);


--
-- Name: job_events_default job_events_default_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events_default
    ADD CONSTRAINT job_events_default_pkey PRIMARY KEY (job_id, seq, at);


--
-- Name: job_events_y2026m11 job_events_y2026m11_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events_y2026m11
    ADD CONSTRAINT job_events_y2026m11_pkey PRIMARY KEY (job_id, seq, at);


--
-- Name: job_events_y2026m12 job_events_y2026m12_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events_y2026m12
    ADD CONSTRAINT job_events_y2026m12_pkey PRIMARY KEY (job_id, seq, at);


--
-- Name: job_events_y2027m01 job_events_y2027m01_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events_y2027m01
    ADD CONSTRAINT job_events_y2027m01_pkey PRIMARY KEY (job_id, seq, at);


--
-- Name: jobs jobs_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);


--
-- Name: models models_once; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_once UNIQUE (project_id, uri, revision);


--
-- Name: models models_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (id);


--
-- Name: projects projects_name_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_name_key UNIQUE (name);


--
-- Name: projects projects_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT projects_pkey PRIMARY KEY (id);


--
-- Name: artifacts_by_model; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX artifacts_by_model ON public.artifacts USING btree (model_fingerprint, protocol_hash);


--
-- Name: artifacts_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX artifacts_by_project ON public.artifacts USING btree (project_id, created_at DESC, id DESC);


--
-- Name: artifacts_by_tag; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX artifacts_by_tag ON public.artifacts USING gin (tags);


--
-- Name: artifacts_to_sweep; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX artifacts_to_sweep ON public.artifacts USING btree (deleted_at) WHERE ((deleted_at IS NOT NULL) AND (swept_at IS NULL));


--
-- Name: datasets_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX datasets_by_project ON public.datasets USING btree (project_id, created_at DESC, id DESC);


--
-- Name: ix_api_keys_project_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_api_keys_project_id ON public.api_keys USING btree (project_id);


--
-- Name: ix_models_fingerprint; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_models_fingerprint ON public.models USING btree (fingerprint);


--
-- Name: job_events_by_position; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX job_events_by_position ON ONLY public.job_events USING btree ("position", job_id, seq);


--
-- Name: job_events_default_position_job_id_seq_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX job_events_default_position_job_id_seq_idx ON public.job_events_default USING btree ("position", job_id, seq);


--
-- Name: job_events_y2026m11_position_job_id_seq_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX job_events_y2026m11_position_job_id_seq_idx ON public.job_events_y2026m11 USING btree ("position", job_id, seq);


--
-- Name: job_events_y2026m12_position_job_id_seq_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX job_events_y2026m12_position_job_id_seq_idx ON public.job_events_y2026m12 USING btree ("position", job_id, seq);


--
-- Name: job_events_y2027m01_position_job_id_seq_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX job_events_y2027m01_position_job_id_seq_idx ON public.job_events_y2027m01 USING btree ("position", job_id, seq);


--
-- Name: jobs_by_project; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX jobs_by_project ON public.jobs USING btree (project_id, created_at DESC, id DESC);


--
-- Name: jobs_deadlines; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX jobs_deadlines ON public.jobs USING btree (deadline_at) WHERE ((state = ANY (ARRAY['queued'::text, 'running'::text])) AND (deadline_at IS NOT NULL));


--
-- Name: jobs_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX jobs_due ON public.jobs USING btree (pool, priority DESC, run_at, id) WHERE (state = 'queued'::text);


--
-- Name: jobs_leases; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX jobs_leases ON public.jobs USING btree (lease_until) WHERE (state = 'running'::text);


--
-- Name: job_events_default_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_pkey ATTACH PARTITION public.job_events_default_pkey;


--
-- Name: job_events_default_position_job_id_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_by_position ATTACH PARTITION public.job_events_default_position_job_id_seq_idx;


--
-- Name: job_events_y2026m11_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_pkey ATTACH PARTITION public.job_events_y2026m11_pkey;


--
-- Name: job_events_y2026m11_position_job_id_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_by_position ATTACH PARTITION public.job_events_y2026m11_position_job_id_seq_idx;


--
-- Name: job_events_y2026m12_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_pkey ATTACH PARTITION public.job_events_y2026m12_pkey;


--
-- Name: job_events_y2026m12_position_job_id_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_by_position ATTACH PARTITION public.job_events_y2026m12_position_job_id_seq_idx;


--
-- Name: job_events_y2027m01_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_pkey ATTACH PARTITION public.job_events_y2027m01_pkey;


--
-- Name: job_events_y2027m01_position_job_id_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.job_events_by_position ATTACH PARTITION public.job_events_y2027m01_position_job_id_seq_idx;


--
-- Name: api_keys api_keys_project_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_project_id_fkey FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: artifacts artifacts_job_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.artifacts
    ADD CONSTRAINT artifacts_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: artifacts artifacts_project_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.artifacts
    ADD CONSTRAINT artifacts_project_id_fkey FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: datasets datasets_project_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.datasets
    ADD CONSTRAINT datasets_project_id_fkey FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: idempotency_keys idempotency_keys_job_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: idempotency_keys idempotency_keys_project_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_project_id_fkey FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: jobs jobs_project_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_project_id_fkey FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: models models_project_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_project_id_fkey FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- PostgreSQL database dump complete
--


