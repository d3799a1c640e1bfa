package doctor_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A database is a healthy one, and a role on it that has no more than it needs.
type database struct {
	testing.TB
	admin *pgxpool.Pool
	role  string
}

func setup(t testing.TB) *database {
	t.Helper()
	return setupOn(t, pgtest.New(t))
}

func setupOn(t testing.TB, admin *pgxpool.Pool) *database {
	t.Helper()
	d := &database{TB: t, admin: admin, role: fmt.Sprintf("doctor_%08x", rand.Uint32())}
	d.exec("create role " + d.role + "; revoke create on schema public from public") // which PostgreSQL 14 grants
	t.Cleanup(func() {
		if _, err := d.admin.Exec(context.Background(), "drop owned by "+d.role+"; drop role "+d.role, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	d.exec("grant select, insert, update, delete on idempotency_keys, idempotency_operations to " + d.role)
	return d
}

func (d *database) exec(sql string) {
	d.Helper()
	if _, err := d.admin.Exec(d.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		d.Fatalf("%s: %v", sql, err)
	}
}

// pool is how a careful program connects, with these parameters otherwise.
func (d *database) pool(params ...string) *pgxpool.Pool {
	d.Helper()
	all := append([]string{"role", d.role, "idle_in_transaction_session_timeout", "1min",
		"tcp_keepalives_idle", "60", "tcp_keepalives_interval", "10", "tcp_keepalives_count", "6"}, params...)
	return pgtest.Pool(d, d.admin, func(cfg *pgxpool.Config) {
		for i := 0; i < len(all); i += 2 {
			cfg.ConnConfig.RuntimeParams[all[i]] = all[i+1]
		}
	})
}

func (d *database) check(pool *pgxpool.Pool, cfg idempotency.Config) []doctor.Finding {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), 30*time.Second) // a check that keeps its connection leaves none for the next
	defer cancel()
	findings, err := doctor.Check(ctx, pool, cfg)
	if err != nil {
		d.Fatal(err)
	}
	return findings
}

// wants checks that there is one finding, of that severity and check, whose text
// has each of the words.
func wants(t testing.TB, findings []doctor.Finding, severity doctor.Severity, check string, words ...string) {
	t.Helper()
	var all []string
	for _, f := range findings {
		all = append(all, f.String())
	}
	if len(findings) != 1 || findings[0].Severity != severity || findings[0].Check != check || findings[0].Remedy == "" {
		t.Errorf("want one %s of %q, found\n%s", severity, check, strings.Join(all, "\n"))
		return
	}
	for _, word := range words {
		if !strings.Contains(all[0], word) {
			t.Errorf("%q does not say %q", all[0], word)
		}
	}
}

func healthy(t testing.TB, findings []doctor.Finding) {
	t.Helper()
	for _, f := range findings {
		t.Errorf("found in a healthy database: %s", f)
	}
}

func TestHealthyDatabaseHasNoFinding(t *testing.T) {
	t.Parallel()
	d := setup(t)
	store := idempotency.New(d.pool())
	_, _, err := idempotency.Do(t.Context(), store, idempotency.Key{Scope: "s", ID: "i"}, func(context.Context, pgx.Tx) (int, error) { return 1, nil })
	if err != nil {
		t.Fatal(err)
	}
	healthy(t, d.check(d.pool(), store.Config()))
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	healthy(t, d.check(d.pool(), idempotency.Config{Schema: "public"}))
}

// folding makes a collation for which "A" is equal to "a".
const folding = `create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false); `

func TestWhatIsWrongWithTheTableIsFound(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, sql string
		severity  doctor.Severity
		check     string
		says      string
	}{
		{"none", "drop table idempotency_keys", doctor.Error, "table", "migrate up"},
		{"elsewhere", "create schema billing; alter table idempotency_keys set schema billing", doctor.Error, "table", `one in schema "billing"`},
		{"a view", "alter table idempotency_keys rename to other; create view idempotency_keys as select * from other", doctor.Error, "table", "not a table"},
		{"no origin", "alter table idempotency_keys drop column origin", doctor.Error, "columns", "no column origin"},
		{"text result", "alter table idempotency_keys alter column result type text using encode(result, 'escape')", doctor.Error, "columns", "needs result bytea"},
		{"foreign column", "alter table idempotency_keys add column tenant int not null", doctor.Error, "columns", "no call fills: tenant"},
		{"folding id", folding + `alter table idempotency_keys alter column id type text collate folding`, doctor.Error, "columns", "on column id"},
		{"folding scope", folding + `alter table idempotency_keys alter column scope type text collate folding`, doctor.Error, "columns", "on column scope"},
		{"folding unique index", folding + `create unique index folded on idempotency_keys (id collate folding, scope)`, doctor.Error, "second unique index", "folded"},
		{"unlogged", "alter table idempotency_keys set unlogged", doctor.Error, "unlogged", "set logged"},
		{"no unique index", "alter table idempotency_keys drop constraint idempotency_keys_pkey", doctor.Error, "unique index", "add primary key (id, scope)"},
		{"invalid primary key", "update pg_index set indisvalid = false where indexrelid = 'idempotency_keys_pkey'::regclass", doctor.Error, "unique index", "reindex"},
		{"scope first", "alter table idempotency_keys drop constraint idempotency_keys_pkey, add primary key (scope, id)", doctor.Warning, "unique index", "leads with the scope"},
		{"the same twice", "create unique index twice on idempotency_keys (scope, id)", doctor.Warning, "second unique index", "2 unique indexes"},
		{"another unique index", "create unique index one_result on idempotency_keys (result)", doctor.Error, "second unique index", "one_result"},
		{"exclusion constraint", "alter table idempotency_keys add constraint apart exclude using btree (origin with =)", doctor.Error, "second unique index", "apart"},
		{"invalid unique index", "create unique index broken on idempotency_keys (origin); update pg_index set indisvalid = false where indexrelid = 'broken'::regclass", doctor.Warning, "second unique index", "invalid"},
		{"no purge index", "drop index idempotency_keys_purge_after", doctor.Warning, "purge index", "(purge_after)"},
		{"invalid purge index", "update pg_index set indisvalid = false where indexrelid = 'idempotency_keys_purge_after'::regclass", doctor.Warning, "purge index", "(purge_after)"},
		{"no purge index, and no purge", "drop index idempotency_keys_purge_after; insert into idempotency_keys (id, scope, completed_at, expires_at, purge_after) select 'i', 's', t, t, t from (select now() - interval '73 hours') x (t)", doctor.Warning, "purge index", "(purge_after)"},
		{"no autovacuum", "alter table idempotency_keys set (autovacuum_enabled = off)", doctor.Warning, "autovacuum", "reset (autovacuum_enabled)"},
		{"no purge", "insert into idempotency_keys (id, scope, completed_at, expires_at, purge_after) select 'i', 's', t, t, t from (select now() - interval '73 hours') x (t)", doctor.Warning, "purge", "73 hours ago"},
		{"interrupted migration", "update idempotency_migrations set dirty = true; grant select on idempotency_migrations to public", doctor.Warning, "migrations", "begun and not ended"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			d.exec(row.sql)
			findings := d.check(d.pool(), idempotency.Config{})
			wants(t, findings, row.severity, row.check, row.says)
			if sql := statement.FindString(findings[0].Remedy); strings.HasPrefix(sql, "alter table") && !strings.HasPrefix(row.name, "invalid") {
				d.exec(sql)
				healthy(t, d.check(d.pool(), idempotency.Config{}))
			}
		})
	}
}

func TestTableOfANamedSchemaIsExamined(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(`create schema "My ""S"; alter table idempotency_keys set schema "My ""S"; grant usage on schema "My ""S" to ` + d.role)
	healthy(t, d.check(d.pool(), idempotency.Config{Schema: `My "S`}))
	wants(t, d.check(d.pool(), idempotency.Config{Schema: "none"}), doctor.Error, "table", `in schema "none"`)
	d.exec(`drop index "My ""S".idempotency_keys_purge_after`)
	wants(t, d.check(d.pool(), idempotency.Config{Schema: `My "S`}), doctor.Warning, "purge index", `"My ""S"."idempotency_keys"`)
}

func TestTroubleOfTheTablesOfAnotherSchemaIsNoFinding(t *testing.T) {
	t.Parallel()
	for sound, bad := range map[string]string{"public": "twin", "twin": "public"} {
		d := setup(t)
		d.exec(`create schema twin; create table twin.idempotency_keys (like idempotency_keys including all); create table twin.idempotency_operations (like idempotency_operations including all);
			grant usage on schema twin to public; grant select, insert, update, delete on all tables in schema twin to ` + d.role)
		d.exec("set search_path = " + bad + ", public; " + operation + triggerFunction + `
			create trigger a after update on idempotency_keys for each row execute function audit();
			create table kid () inherits (idempotency_keys); create publication p for table idempotency_keys;
			alter table idempotency_keys set (autovacuum_enabled = off), enable row level security; create policy p on idempotency_keys using (scope <> 's');
			revoke delete on idempotency_keys, idempotency_operations from ` + d.role + "; reset search_path")
		healthy(t, d.check(d.pool(), idempotency.Config{Schema: sound}))
		var checks []string
		for _, f := range d.check(d.pool(), idempotency.Config{Schema: bad}) {
			checks = append(checks, f.Check)
		}
		if got := strings.Join(checks, ", "); got != "inheritance, privileges, trigger, policy, autovacuum, unfinished, publication, privileges" {
			t.Errorf("of %s: %s", bad, got)
		}
	}
}

func TestMissingPrivilegesAreNamed(t *testing.T) {
	t.Parallel()
	for _, privilege := range []string{"select", "insert", "update", "delete"} {
		d := setup(t)
		d.exec("revoke " + privilege + " on idempotency_keys from " + d.role)
		wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "privileges", "lacks "+privilege, "grant select, insert, update, delete")
	}
	d := setup(t)
	d.exec("create schema billing; alter table idempotency_keys set schema billing")
	wants(t, d.check(d.pool(), idempotency.Config{Schema: "billing"}), doctor.Error, "privileges", "may not use schema billing", "grant usage")
	d = setup(t)
	d.exec("revoke execute on all functions in schema pg_catalog from public; grant execute on all functions in schema pg_catalog to " + d.role +
		"; do $$ declare f regprocedure; begin for f in select oid from pg_proc where proname = 'pg_logical_emit_message' and proargtypes[2] = 'text'::regtype loop execute 'revoke execute on function ' || f || ' from " + d.role + "'; end loop; end $$")
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "privileges", "pg_logical_emit_message")
	findings, err := doctor.CheckReader(t.Context(), d.pool(), idempotency.Config{})
	if err != nil {
		t.Fatal(err)
	}
	healthy(t, findings) // a reader calls no such function

	d = setup(t)
	d.exec("revoke all on idempotency_keys from " + d.role)
	findings = d.check(d.pool(), idempotency.Config{})
	wants(t, findings, doctor.Error, "privileges", "lacks select, insert, update, delete")
	if len(findings) == 1 && strings.Contains(findings[0].Remedy, "-reader") {
		t.Errorf("a role that cannot look is taken for a reader: %s", findings[0])
	}
}

// What a program's role would be told is no matter to a reader: its privileges, and
// the settings of its connections.
func TestReaderIsExaminedAsAReader(t *testing.T) {
	t.Parallel()
	check := func(d *database, pool *pgxpool.Pool) []doctor.Finding {
		t.Helper()
		findings, err := doctor.CheckReader(t.Context(), pool, idempotency.Config{})
		if err != nil {
			t.Error(err)
		}
		return findings
	}
	d := setup(t)
	d.exec("revoke insert, update, delete on idempotency_keys from " + d.role)
	careless := d.pool("default_transaction_read_only", "on", "idle_in_transaction_session_timeout", "0",
		"tcp_keepalives_idle", "7200", "default_transaction_isolation", "serializable")
	healthy(t, check(d, careless))
	d.exec("revoke all on idempotency_operations from " + d.role)
	healthy(t, check(d, careless))
	d.exec("grant select, insert, update, delete on idempotency_operations to " + d.role)
	d.exec("revoke select on idempotency_keys from " + d.role + "; grant select (id, scope, origin, fingerprint, completed_at, expires_at, purge_after) on idempotency_keys to " + d.role)
	healthy(t, check(d, d.pool()))
	d.exec("revoke select (origin) on idempotency_keys from " + d.role + "; grant select (result) on idempotency_keys to " + d.role)
	wants(t, check(d, d.pool()), doctor.Error, "privileges", "lacks select", "grant select on")
	d.exec("grant select on idempotency_keys to " + d.role)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "privileges", "lacks insert, update, delete", "doctor -reader")

	d.exec("revoke select on idempotency_keys from " + d.role)
	wants(t, check(d, d.pool()), doctor.Error, "privileges", "lacks select", "grant select on")

	d = setup(t)
	d.exec("drop index idempotency_keys_purge_after")
	wants(t, check(d, d.pool()), doctor.Warning, "purge index")
	d.exec("drop table idempotency_keys")
	wants(t, check(d, d.pool()), doctor.Error, "table")
}

func TestSuperuserIsNoted(t *testing.T) {
	t.Parallel()
	d := setup(t)
	var super bool
	if err := d.admin.QueryRow(t.Context(), "select rolsuper from pg_roles where rolname = current_user").Scan(&super); err != nil || !super {
		t.Fatal("the tests need a superuser: ", err)
	}
	wants(t, d.check(d.pool("role", "none"), idempotency.Config{}), doctor.Note, "privileges", "superuser")
}

func TestWhatIsWrongWithTheConnectionIsFound(t *testing.T) {
	t.Parallel()
	d := setup(t)
	named := idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}}
	endless := idempotency.Config{MaxIdle: -1}
	for _, row := range []struct {
		params   []string
		cfg      idempotency.Config
		severity doctor.Severity
		check    string
		says     string
	}{
		{[]string{"default_transaction_read_only", "on"}, idempotency.Config{}, doctor.Error, "read only", "read-only"},
		{[]string{"default_transaction_isolation", "serializable"}, idempotency.Config{}, doctor.Note, "isolation", "serializable"},
		{[]string{"default_transaction_isolation", "repeatable read"}, idempotency.Config{}, doctor.Note, "isolation", "repeatable read"},
		{[]string{"synchronous_commit", "off"}, idempotency.Config{}, doctor.Warning, "synchronous_commit", "is off"},
		{[]string{"tcp_keepalives_idle", "7200"}, idempotency.Config{}, doctor.Warning, "tcp keepalives", "2h1m0s"},
		{[]string{"idle_in_transaction_session_timeout", "0"}, idempotency.Config{}, doctor.Note, "idle timeout", "DoTx"},
		{[]string{"idle_in_transaction_session_timeout", "0"}, endless, doctor.Warning, "idle timeout", "Config.MaxIdle is off"},
	} {
		wants(t, d.check(d.pool(row.params...), row.cfg), row.severity, row.check, row.says)
	}
	healthy(t, d.check(d.pool("default_transaction_isolation", "repeatable read"), named))
	writing := idempotency.Config{TxOptions: pgx.TxOptions{AccessMode: pgx.ReadWrite}}
	healthy(t, d.check(d.pool("default_transaction_read_only", "on"), writing))
	healthy(t, d.check(d.pool(), endless))
}

func TestEncodingThatMakesTwoKeysOfOneIsFound(t *testing.T) {
	t.Parallel()
	d := setupOn(t, pgtest.Encoded(t, "UTF8"))
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	healthy(t, d.check(d.pool("client_encoding", "UTF8"), idempotency.Config{}))
	wants(t, d.check(d.pool("client_encoding", "LATIN1"), idempotency.Config{}), doctor.Error, "encoding", "says that it sends LATIN1", "client_encoding=UTF8", "ErrInvalidKey")
	healthy(t, d.check(d.pool("client_encoding", "SQL_ASCII"), idempotency.Config{}))
	d = setupOn(t, pgtest.Encoded(t, "LATIN1"))
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "encoding", "has the encoding LATIN1", "client_encoding=UTF8")
	wants(t, d.check(d.pool("client_encoding", "UTF8"), idempotency.Config{}), doctor.Note, "encoding", "has the encoding LATIN1", "without client_encoding=UTF8")
	wants(t, d.check(d.pool("client_encoding", "SQL_ASCII"), idempotency.Config{}), doctor.Warning, "encoding", "says that it sends SQL_ASCII")
	d = setupOn(t, pgtest.Encoded(t, "EUC_JP"))
	wants(t, d.check(d.pool("client_encoding", "UTF8"), idempotency.Config{}), doctor.Note, "encoding", "EUC_JP", "U+00A6", "U+FFE4", "is refused")
	wants(t, d.check(d.pool("client_encoding", "SJIS"), idempotency.Config{}), doctor.Error, "encoding", "EUC_JP", "says that it sends SJIS")
	d = setupOn(t, pgtest.Encoded(t, "SQL_ASCII"))
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	healthy(t, d.check(d.pool("client_encoding", "UTF8"), idempotency.Config{}))
}

func TestServerThatCannotWatchItsClientsIsNoted(t *testing.T) {
	t.Parallel()
	d := setup(t)
	pool := d.played(`create function shim.set_config(name text, value text, local bool) returns text language plpgsql as $$ begin
			if name = 'client_connection_check_interval' and value <> '0' then
				raise exception 'invalid value for parameter "%"', name using errcode = '22023';
			end if;
			return pg_catalog.set_config(name, value, local);
		end $$`)
	wants(t, d.check(pool, idempotency.Config{}), doctor.Note, "client check", "only when the statement ends", "statement_timeout")
}

// An unlogged table is used all the same, so that the rest of it matters.
func TestTableThatCanBeUsedIsExaminedToTheEnd(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec("alter table idempotency_keys set unlogged, add column tenant int not null; drop index idempotency_keys_purge_after")
	var checks []string
	for _, f := range d.check(d.pool(), idempotency.Config{}) {
		checks = append(checks, f.Check)
	}
	if got := strings.Join(checks, ", "); got != "columns, unlogged, purge index" {
		t.Error(got)
	}
	d.exec("alter table idempotency_keys drop column origin")
	wants(t, d.check(d.pool(), idempotency.Config{})[:1], doctor.Error, "columns", "no column origin")
	if findings := d.check(d.pool(), idempotency.Config{}); len(findings) != 3 || findings[2].Check != "unlogged" {
		t.Errorf("a table that cannot be used: %v", findings)
	}
}

// It runs by itself: the oldest snapshot of the server must not be another test's.
func TestDeadRowsThatAutovacuumCannotRemoveAreFoundWithWhatHoldsThem(t *testing.T) {
	d := setup(t)
	holder, err := d.admin.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context())
	if _, err := holder.Exec(t.Context(), "select"); err != nil { // takes its snapshot
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), d.admin.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"insert into idempotency_keys (id, scope, purge_after) select i::text, 's', now() from generate_series(1, 20000) i",
		"delete from idempotency_keys",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close(t.Context()) // a session that ends reports its statistics
	pool := d.pool()
	var findings []doctor.Finding
	for start := time.Now(); len(findings) == 0 && time.Since(start) < time.Minute; time.Sleep(50 * time.Millisecond) {
		findings = d.check(pool, idempotency.Config{})
	}
	wants(t, findings, doctor.Warning, "dead rows", "which this role cannot see", "vacuum")
	d.exec("alter role " + d.role + " login password 'doctor'") // a role sees the sessions of its own logins
	login := pgtest.Pool(t, d.admin, func(cfg *pgxpool.Config) { cfg.ConnConfig.User, cfg.ConnConfig.Password = d.role, "doctor" })
	own, err := login.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead}) // a younger one
	if err != nil {
		t.Fatal(err)
	}
	defer own.Rollback(t.Context())
	if _, err := own.Exec(t.Context(), "select"); err != nil {
		t.Fatal(err)
	}
	findings = d.check(pool, idempotency.Config{})
	wants(t, findings, doctor.Warning, "dead rows", "that this role can see", "pg_monitor")
	if len(findings) == 1 && strings.Contains(findings[0].Remedy, "pg_terminate_backend") {
		t.Errorf("it says to end a session that may hold nothing back: %s", findings[0])
	}
	d.exec("grant pg_monitor to " + d.role)
	wants(t, d.check(pool, idempotency.Config{}), doctor.Warning, "dead rows",
		fmt.Sprintf("process %d", holder.Conn().PgConn().PID()), "pg_terminate_backend", "vacuum")
}

func TestWorstComesFirst(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec("drop index idempotency_keys_purge_after; create unique index other on idempotency_keys (result)")
	var order []string
	for _, f := range d.check(d.pool("idle_in_transaction_session_timeout", "0"), idempotency.Config{}) {
		order = append(order, string(f.Severity))
	}
	if got := strings.Join(order, " "); got != "error warning note" {
		t.Error(got)
	}
}

func TestFindingDoesNothingToATerminal(t *testing.T) {
	t.Parallel()
	f := doctor.Finding{Severity: doctor.Note, Check: "trigger", Found: "the trigger \x1b[2J", Remedy: "drop \r"}
	if got, want := f.String(), `note: trigger: the trigger \x1b[2J: drop \r`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDatabaseThatCannotBeAskedIsAnError(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://user:s3cret@127.0.0.1:1/none")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := doctor.Check(t.Context(), pool, idempotency.Config{}); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
	if _, err := doctor.Check(t.Context(), pool, idempotency.Config{Retention: -1}); err == nil || !strings.Contains(err.Error(), "Retention") {
		t.Error(err)
	}
}

func TestCheckLeavesNoTraceAndNoConnection(t *testing.T) {
	t.Parallel()
	d := setup(t)
	pool := d.pool() // pgtest looks for leaked connections and open transactions
	healthy(t, d.check(pool, idempotency.Config{}))
	if n := pool.Stat().TotalConns(); n != 1 {
		t.Errorf("%d connections for one check", n)
	}
	var prepared int // a pooler could not keep them
	if err := pool.QueryRow(t.Context(), "select count(*) from pg_prepared_statements", pgx.QueryExecModeExec).Scan(&prepared); err != nil || prepared != 0 {
		t.Errorf("%d prepared statements, %v", prepared, err)
	}
}
