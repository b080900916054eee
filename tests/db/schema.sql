CREATE FUNCTION public.end_what_is_to_be_cancelled() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.state = 'cancelled';
    RETURN NEW;
END $$;
CREATE FUNCTION public.outbox_of_transactions() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO outbox (tenant_id, kind, subject, number, data, at)
    SELECT n.tenant_id, 'transaction', n.transaction_id, n.number,
           json_build_object('id', n.transaction_id, 'number', n.number, 'state', n.state, 'cause', n.cause,
                             'txid', '0x' || encode(reverse(t.txid), 'hex'), 'block', t.block_index),
           n.at
    FROM new_rows n JOIN transactions t ON (t.tenant_id, t.id) = (n.tenant_id, n.transaction_id)
    ORDER BY n.transaction_id, n.number;
    RETURN NULL;
END $$;
CREATE FUNCTION public.reserve_changed_attempts() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO wallet_reservations AS r (tenant_id, wallet_id, network, reserved, height, live)
    SELECT n.tenant_id, n.wallet_id, n.network, sum((n.system_fee + n.network_fee + n.gas_out) * c.sign),
           coalesce(max(n.block_index), 0), sum(c.sign)
    FROM new_rows n JOIN old_rows o ON (o.tenant_id, o.txid) = (n.tenant_id, n.txid)
    CROSS JOIN LATERAL (
        SELECT (n.state IN ('signed', 'sent'))::integer - (o.state IN ('signed', 'sent'))::integer AS sign
    ) c
    WHERE c.sign <> 0
    GROUP BY n.tenant_id, n.wallet_id, n.network ORDER BY n.tenant_id, n.wallet_id, n.network
    ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE
    SET reserved = r.reserved + excluded.reserved, live = r.live + excluded.live,
        height = greatest(r.height, excluded.height), waits_until = NULL;
    RETURN NULL;
END $$;
CREATE FUNCTION public.reserve_new_attempts() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO wallet_reservations AS r (tenant_id, wallet_id, network, reserved, height, live)
    SELECT tenant_id, wallet_id, network, sum(system_fee + network_fee + gas_out), 0, count(*)
    FROM new_rows WHERE state IN ('signed', 'sent')
    GROUP BY tenant_id, wallet_id, network ORDER BY tenant_id, wallet_id, network
    ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE
    SET reserved = r.reserved + excluded.reserved, live = r.live + excluded.live;
    RETURN NULL;
END $$;
CREATE TABLE public.api_keys (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    hash bytea NOT NULL,
    prefix text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    CONSTRAINT api_keys_hash_check CHECK ((length(hash) = 32))
);
CREATE TABLE public.chain_blocks (
    network bigint NOT NULL,
    index bigint NOT NULL,
    hash bytea NOT NULL,
    "time" timestamp with time zone NOT NULL,
    transactions integer
);
CREATE TABLE public.execution_queue (
    tenant_id uuid NOT NULL,
    execution_id uuid NOT NULL,
    function_id uuid NOT NULL,
    key_id uuid NOT NULL,
    target text NOT NULL,
    input bytea NOT NULL,
    state text NOT NULL,
    failures smallint DEFAULT 0 NOT NULL,
    max_attempts smallint NOT NULL,
    leases smallint DEFAULT 0 NOT NULL,
    available_at timestamp with time zone DEFAULT now() NOT NULL,
    lease uuid,
    dead_at timestamp with time zone,
    CONSTRAINT execution_queue_state_check CHECK ((state = ANY (ARRAY['queued'::text, 'running'::text, 'dead'::text])))
);
CREATE TABLE public.executions (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    function_id uuid NOT NULL,
    function text NOT NULL,
    version integer NOT NULL,
    status text NOT NULL,
    output text,
    error json,
    logs json,
    cold boolean NOT NULL,
    wall_us integer NOT NULL,
    cpu_us integer NOT NULL,
    heap_bytes bigint NOT NULL,
    fetches integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    kind text DEFAULT 'sync'::text NOT NULL,
    parent_id uuid,
    attempt smallint DEFAULT 1 NOT NULL,
    alias text,
    queue_us integer,
    peak_heap_bytes bigint,
    bytes_in integer,
    bytes_out integer,
    phases json,
    written xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT executions_kind_check CHECK ((kind = ANY (ARRAY['sync'::text, 'async'::text, 'invoke'::text]))),
    CONSTRAINT executions_status_check CHECK ((status = ANY (ARRAY['queued'::text, 'running'::text, 'succeeded'::text, 'failed'::text, 'dead'::text, 'cancelled'::text])))
);
CREATE TABLE public.function_aliases (
    tenant_id uuid NOT NULL,
    function_id uuid NOT NULL,
    name text NOT NULL,
    versions integer[] NOT NULL,
    weights integer[] NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT function_aliases_check CHECK ((cardinality(weights) = cardinality(versions))),
    CONSTRAINT function_aliases_versions_check CHECK ((cardinality(versions) > 0))
);
CREATE TABLE public.function_versions (
    tenant_id uuid NOT NULL,
    function_id uuid NOT NULL,
    number integer NOT NULL,
    source text NOT NULL,
    code_hash bytea NOT NULL,
    timeout_ms integer NOT NULL,
    cpu_ms integer NOT NULL,
    memory_mb integer NOT NULL,
    secrets text[] NOT NULL,
    egress text[] NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    isolation text DEFAULT 'version'::text NOT NULL,
    max_attempts smallint DEFAULT 3 NOT NULL,
    CONSTRAINT function_versions_code_hash_check CHECK ((length(code_hash) = 32)),
    CONSTRAINT function_versions_isolation_check CHECK ((isolation = ANY (ARRAY['version'::text, 'call'::text]))),
    CONSTRAINT function_versions_max_attempts_check CHECK (((max_attempts >= 1) AND (max_attempts <= 10)))
);
CREATE TABLE public.functions (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone
);
CREATE TABLE public.invoke_keys (
    tenant_id uuid NOT NULL,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    execution_id uuid NOT NULL,
    done boolean NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    lease uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT invoke_keys_request_hash_check CHECK ((length(request_hash) = 32))
);
CREATE TABLE public.outbox (
    tenant_id uuid NOT NULL,
    written xid8 DEFAULT pg_current_xact_id() NOT NULL,
    sequence bigint NOT NULL,
    kind text NOT NULL,
    subject uuid NOT NULL,
    number bigint NOT NULL,
    data json NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.outbox_horizon (
    singleton boolean DEFAULT true NOT NULL,
    written xid8 NOT NULL,
    CONSTRAINT outbox_horizon_singleton_check CHECK (singleton)
);
ALTER TABLE public.outbox ALTER COLUMN sequence ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_sequence_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE public.schema_migrations (
    number integer NOT NULL,
    name text NOT NULL,
    checksum bytea NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.secrets (
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    issued integer NOT NULL,
    ciphertext bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    uploaded text DEFAULT 'plain'::text NOT NULL,
    seal_epoch integer DEFAULT 0 NOT NULL,
    CONSTRAINT secrets_uploaded_check CHECK ((uploaded = ANY (ARRAY['sealed'::text, 'plain'::text])))
);
CREATE TABLE public.tenants (
    id uuid NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    paused_at timestamp with time zone,
    pause_reason text,
    CONSTRAINT tenants_check CHECK (((paused_at IS NULL) = (pause_reason IS NULL)))
);
CREATE TABLE public.transaction_attempt_intents (
    tenant_id uuid NOT NULL,
    txid bytea NOT NULL,
    "position" smallint NOT NULL,
    transaction_id uuid NOT NULL,
    role text DEFAULT 'execute'::text NOT NULL,
    system_fee bigint NOT NULL,
    network_fee bigint NOT NULL,
    result json,
    CONSTRAINT transaction_attempt_intents_role_check CHECK ((role = ANY (ARRAY['execute'::text, 'cancel'::text])))
);
CREATE TABLE public.transaction_attempts (
    tenant_id uuid NOT NULL,
    txid bytea NOT NULL,
    network bigint NOT NULL,
    raw bytea NOT NULL,
    valid_until_block bigint NOT NULL,
    system_fee bigint NOT NULL,
    network_fee bigint NOT NULL,
    signed_at timestamp with time zone DEFAULT now() NOT NULL,
    sent_at_height bigint,
    wallet_id uuid NOT NULL,
    kind text DEFAULT 'send'::text NOT NULL,
    conflicts_with bytea[] DEFAULT '{}'::bytea[] NOT NULL,
    gas_out bigint DEFAULT 0 NOT NULL,
    grouped boolean DEFAULT false NOT NULL,
    state text DEFAULT 'signed'::text NOT NULL,
    block_index bigint,
    lease uuid,
    lease_until timestamp with time zone,
    tries integer DEFAULT 0 NOT NULL,
    signed_at_height bigint DEFAULT 0 NOT NULL,
    CONSTRAINT transaction_attempts_kind_check CHECK ((kind = ANY (ARRAY['send'::text, 'cancel'::text, 'speed_up'::text]))),
    CONSTRAINT transaction_attempts_state_check CHECK ((state = ANY (ARRAY['signed'::text, 'sent'::text, 'included'::text, 'expired'::text, 'refused'::text, 'replaced'::text]))),
    CONSTRAINT transaction_attempts_txid_check CHECK ((length(txid) = 32))
);
CREATE TABLE public.transaction_events (
    tenant_id uuid NOT NULL,
    transaction_id uuid NOT NULL,
    number integer NOT NULL,
    state text NOT NULL,
    cause json,
    at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.transactions (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    wallet_id uuid NOT NULL,
    idempotency_key text NOT NULL,
    request_hash bytea NOT NULL,
    calls json NOT NULL,
    script bytea NOT NULL,
    priority smallint NOT NULL,
    valid_for_blocks integer NOT NULL,
    max_fee bigint,
    execution_id uuid,
    network bigint,
    state text NOT NULL,
    cause json,
    txid bytea,
    block_index bigint,
    block_time timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    available_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    tries integer DEFAULT 0 NOT NULL,
    events integer DEFAULT 1 NOT NULL,
    "grouping" text DEFAULT 'auto'::text NOT NULL,
    alone boolean DEFAULT false NOT NULL,
    call_count smallint NOT NULL,
    fifo_key text,
    not_before timestamp with time zone,
    not_before_block bigint,
    on_expiry text DEFAULT 'end'::text NOT NULL,
    held boolean DEFAULT false NOT NULL,
    rank_at timestamp with time zone NOT NULL,
    lease uuid,
    lease_until timestamp with time zone,
    speed text DEFAULT 'standard'::text NOT NULL,
    counted_fee bigint,
    counted_day date,
    cancel_requested_at timestamp with time zone,
    arrival bigint NOT NULL,
    CONSTRAINT transactions_grouping_check CHECK (("grouping" = ANY (ARRAY['auto'::text, 'never'::text]))),
    CONSTRAINT transactions_on_expiry_check CHECK ((on_expiry = ANY (ARRAY['end'::text, 'rebuild'::text]))),
    CONSTRAINT transactions_speed_check CHECK ((speed = ANY (ARRAY['economy'::text, 'standard'::text, 'fast'::text, 'urgent'::text]))),
    CONSTRAINT transactions_state_check CHECK ((state = ANY (ARRAY['queued'::text, 'signed'::text, 'sent'::text, 'confirmed'::text, 'faulted'::text, 'expired'::text, 'rejected'::text, 'cancelled'::text])))
);
ALTER TABLE public.transactions ALTER COLUMN arrival ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.transactions_arrival_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE public.wallet_fee_days (
    tenant_id uuid NOT NULL,
    wallet_id uuid NOT NULL,
    day date NOT NULL,
    datoshi bigint NOT NULL,
    CONSTRAINT wallet_fee_days_datoshi_check CHECK ((datoshi >= 0))
);
CREATE TABLE public.wallet_limits (
    tenant_id uuid NOT NULL,
    wallet_id uuid NOT NULL,
    max_fee_per_transaction bigint,
    max_fee_per_day bigint,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT wallet_limits_max_fee_per_day_check CHECK ((max_fee_per_day >= 0)),
    CONSTRAINT wallet_limits_max_fee_per_transaction_check CHECK ((max_fee_per_transaction >= 0))
);
CREATE TABLE public.wallet_reservations (
    tenant_id uuid NOT NULL,
    wallet_id uuid NOT NULL,
    network bigint NOT NULL,
    reserved bigint NOT NULL,
    height bigint NOT NULL,
    waits_until timestamp with time zone,
    live integer DEFAULT 0 NOT NULL
);
CREATE TABLE public.wallets (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    public_key bytea NOT NULL,
    script_hash bytea NOT NULL,
    sealed_key bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    paused_at timestamp with time zone,
    pause_reason text,
    CONSTRAINT wallets_check CHECK (((paused_at IS NULL) = (pause_reason IS NULL))),
    CONSTRAINT wallets_public_key_check CHECK ((length(public_key) = 33)),
    CONSTRAINT wallets_script_hash_check CHECK ((length(script_hash) = 20))
);
CREATE TABLE public.watches (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    network bigint NOT NULL,
    contract bytea NOT NULL,
    event text,
    after_block bigint NOT NULL,
    events bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT watches_contract_check CHECK ((octet_length(contract) = 20))
);
CREATE TABLE public.worker_pool (
    singleton boolean DEFAULT true NOT NULL,
    transactions smallint NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT worker_pool_singleton_check CHECK (singleton),
    CONSTRAINT worker_pool_transactions_check CHECK (((transactions >= 0) AND (transactions <= 256)))
);
ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_hash_key UNIQUE (hash);
ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE ONLY public.chain_blocks
    ADD CONSTRAINT chain_blocks_pkey PRIMARY KEY (network, index);
ALTER TABLE ONLY public.execution_queue
    ADD CONSTRAINT execution_queue_pkey PRIMARY KEY (tenant_id, execution_id);
ALTER TABLE ONLY public.executions
    ADD CONSTRAINT executions_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE ONLY public.function_aliases
    ADD CONSTRAINT function_aliases_pkey PRIMARY KEY (tenant_id, function_id, name);
ALTER TABLE ONLY public.function_versions
    ADD CONSTRAINT function_versions_pkey PRIMARY KEY (tenant_id, function_id, number);
ALTER TABLE ONLY public.functions
    ADD CONSTRAINT functions_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE ONLY public.invoke_keys
    ADD CONSTRAINT invoke_keys_pkey PRIMARY KEY (tenant_id, key);
ALTER TABLE ONLY public.outbox_horizon
    ADD CONSTRAINT outbox_horizon_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (written, sequence);
ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (number);
ALTER TABLE ONLY public.secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (tenant_id, name);
ALTER TABLE ONLY public.tenants
    ADD CONSTRAINT tenants_name_key UNIQUE (name);
ALTER TABLE ONLY public.tenants
    ADD CONSTRAINT tenants_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.transaction_attempt_intents
    ADD CONSTRAINT transaction_attempt_intents_pkey PRIMARY KEY (tenant_id, txid, "position");
ALTER TABLE ONLY public.transaction_attempts
    ADD CONSTRAINT transaction_attempts_pkey PRIMARY KEY (tenant_id, txid);
ALTER TABLE ONLY public.transaction_events
    ADD CONSTRAINT transaction_events_pkey PRIMARY KEY (tenant_id, transaction_id, number);
ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_idempotency_key_tenant_id_key UNIQUE (idempotency_key, tenant_id);
ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE ONLY public.wallet_fee_days
    ADD CONSTRAINT wallet_fee_days_pkey PRIMARY KEY (tenant_id, wallet_id, day);
ALTER TABLE ONLY public.wallet_limits
    ADD CONSTRAINT wallet_limits_pkey PRIMARY KEY (tenant_id, wallet_id);
ALTER TABLE ONLY public.wallet_reservations
    ADD CONSTRAINT wallet_reservations_pkey PRIMARY KEY (tenant_id, wallet_id, network);
ALTER TABLE ONLY public.wallets
    ADD CONSTRAINT wallets_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE ONLY public.wallets
    ADD CONSTRAINT wallets_tenant_id_name_key UNIQUE (tenant_id, name);
ALTER TABLE ONLY public.watches
    ADD CONSTRAINT watches_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE ONLY public.watches
    ADD CONSTRAINT watches_tenant_id_network_contract_event_key UNIQUE NULLS NOT DISTINCT (tenant_id, network, contract, event);
ALTER TABLE ONLY public.worker_pool
    ADD CONSTRAINT worker_pool_pkey PRIMARY KEY (singleton);
CREATE INDEX execution_queue_work ON public.execution_queue USING btree (tenant_id, available_at) WHERE (state <> 'dead'::text);
CREATE INDEX executions_not_succeeded ON public.executions USING btree (tenant_id, id DESC) WHERE (status <> 'succeeded'::text);
CREATE INDEX executions_of_function ON public.executions USING btree (tenant_id, function, id DESC);
CREATE INDEX executions_written ON public.executions USING btree (written);
CREATE UNIQUE INDEX functions_name ON public.functions USING btree (tenant_id, name) WHERE (deleted_at IS NULL);
CREATE INDEX invoke_keys_age ON public.invoke_keys USING btree (created_at);
CREATE INDEX outbox_age ON public.outbox USING btree (at);
CREATE INDEX outbox_of ON public.outbox USING btree (tenant_id, written, sequence);
CREATE INDEX secrets_by_epoch ON public.secrets USING btree (seal_epoch) WHERE (ciphertext IS NOT NULL);
CREATE INDEX transaction_attempt_intents_of ON public.transaction_attempt_intents USING btree (tenant_id, transaction_id);
CREATE INDEX transaction_attempts_by_block ON public.transaction_attempts USING btree (network, block_index) WHERE (block_index IS NOT NULL);
CREATE INDEX transaction_attempts_expired ON public.transaction_attempts USING btree (network, valid_until_block) WHERE (state = 'expired'::text);
CREATE INDEX transaction_attempts_fresh ON public.transaction_attempts USING btree (network, signed_at_height) WHERE (state = ANY (ARRAY['signed'::text, 'sent'::text]));
CREATE INDEX transaction_attempts_live ON public.transaction_attempts USING btree (network, valid_until_block) WHERE (state = ANY (ARRAY['signed'::text, 'sent'::text]));
CREATE INDEX transaction_attempts_replacing ON public.transaction_attempts USING btree (tenant_id, wallet_id) WHERE ((kind <> 'send'::text) AND (state = ANY (ARRAY['signed'::text, 'sent'::text])));
CREATE INDEX transaction_attempts_txid ON public.transaction_attempts USING btree (txid);
CREATE INDEX transaction_attempts_work ON public.transaction_attempts USING btree (lease_until) WHERE (state = 'signed'::text);
CREATE INDEX transactions_by_state ON public.transactions USING btree (state, tenant_id);
CREATE INDEX transactions_counted ON public.transactions USING btree (tenant_id, wallet_id) WHERE ((counted_fee IS NOT NULL) AND (state = ANY (ARRAY['confirmed'::text, 'faulted'::text, 'expired'::text, 'rejected'::text, 'cancelled'::text])));
CREATE INDEX transactions_fifo ON public.transactions USING btree (tenant_id, fifo_key, arrival) WHERE ((fifo_key IS NOT NULL) AND (state = ANY (ARRAY['queued'::text, 'signed'::text, 'sent'::text])));
CREATE INDEX transactions_fifo_turn ON public.transactions USING btree (tenant_id, fifo_key) WHERE ((fifo_key IS NOT NULL) AND (NOT held) AND (state = ANY (ARRAY['queued'::text, 'signed'::text, 'sent'::text])));
CREATE INDEX transactions_leased ON public.transactions USING btree (lease_until) WHERE (lease IS NOT NULL);
CREATE INDEX transactions_queue ON public.transactions USING btree (tenant_id, wallet_id, rank_at) WHERE ((state = 'queued'::text) AND (lease IS NULL) AND (NOT held));
CREATE INDEX transactions_scheduled ON public.transactions USING btree (not_before_block) WHERE (held AND (fifo_key IS NULL));
CREATE INDEX watches_of ON public.watches USING btree (network, contract);
CREATE TRIGGER end_what_is_to_be_cancelled BEFORE UPDATE ON public.transactions FOR EACH ROW WHEN (((new.cancel_requested_at IS NOT NULL) AND (new.state = ANY (ARRAY['queued'::text, 'rejected'::text, 'expired'::text])))) EXECUTE FUNCTION public.end_what_is_to_be_cancelled();
CREATE TRIGGER outbox_of_transactions AFTER INSERT ON public.transaction_events REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION public.outbox_of_transactions();
CREATE TRIGGER reserve_changed_attempts AFTER UPDATE ON public.transaction_attempts REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION public.reserve_changed_attempts();
CREATE TRIGGER reserve_new_attempts AFTER INSERT ON public.transaction_attempts REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION public.reserve_new_attempts();
ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(id);
ALTER TABLE ONLY public.execution_queue
    ADD CONSTRAINT execution_queue_tenant_id_execution_id_fkey FOREIGN KEY (tenant_id, execution_id) REFERENCES public.executions(tenant_id, id);
ALTER TABLE ONLY public.function_aliases
    ADD CONSTRAINT function_aliases_tenant_id_function_id_fkey FOREIGN KEY (tenant_id, function_id) REFERENCES public.functions(tenant_id, id);
ALTER TABLE ONLY public.function_versions
    ADD CONSTRAINT function_versions_tenant_id_function_id_fkey FOREIGN KEY (tenant_id, function_id) REFERENCES public.functions(tenant_id, id);
ALTER TABLE ONLY public.functions
    ADD CONSTRAINT functions_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(id);
ALTER TABLE ONLY public.secrets
    ADD CONSTRAINT secrets_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(id);
ALTER TABLE ONLY public.transaction_attempts
    ADD CONSTRAINT transaction_attempts_tenant_id_wallet_id_fkey FOREIGN KEY (tenant_id, wallet_id) REFERENCES public.wallets(tenant_id, id);
ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(id);
ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_tenant_id_wallet_id_fkey FOREIGN KEY (tenant_id, wallet_id) REFERENCES public.wallets(tenant_id, id);
ALTER TABLE ONLY public.wallet_limits
    ADD CONSTRAINT wallet_limits_tenant_id_wallet_id_fkey FOREIGN KEY (tenant_id, wallet_id) REFERENCES public.wallets(tenant_id, id);
ALTER TABLE ONLY public.wallet_reservations
    ADD CONSTRAINT wallet_reservations_tenant_id_wallet_id_fkey FOREIGN KEY (tenant_id, wallet_id) REFERENCES public.wallets(tenant_id, id);
ALTER TABLE ONLY public.wallets
    ADD CONSTRAINT wallets_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(id);
ALTER TABLE ONLY public.watches
    ADD CONSTRAINT watches_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(id);
