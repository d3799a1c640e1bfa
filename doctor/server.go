package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/pgidem/idempotency/internal/remedy"
)

const serverSQL = `
select pg_is_in_recovery(),
	current_setting('fsync'::text)::bool, current_setting('full_page_writes'::text)::bool,
	(select count(*) from pg_stat_replication),
	current_setting('synchronous_standby_names'::text)`

// checkServer looks at what is the same for every connection.
func checkServer(ctx context.Context, p *patient) error {
	var standby, fsync, fullPages bool
	var standbys int
	var synchronous string
	err := p.query(ctx, "asking for the server's settings", serverSQL, nil, &standby, &fsync, &fullPages, &standbys, &synchronous)
	if err != nil {
		return err
	}
	if standby {
		p.find(Error, "primary", "this server is a standby, which cannot write",
			"connect to the primary: several hosts and target_session_attrs=read-write in the connection string find it")
	}
	if !fsync {
		p.find(Error, "fsync", "fsync is off: a crash of the machine can lose committed keys, or corrupt the database",
			"alter system set fsync = on; select pg_reload_conf()")
	}
	if !fullPages {
		p.find(Warning, "full_page_writes", "full_page_writes is off: a crash can leave torn pages unless the file system rules them out",
			"alter system set full_page_writes = on; select pg_reload_conf()")
	}
	if standbys > 0 && synchronous == "" {
		p.find(Note, "standbys", fmt.Sprintf("%d standbys follow, and none is synchronous: after a failover to one, the last effects and their keys can be missing, and retries run again", standbys),
			"set synchronous_standby_names if a confirmed call must survive a failover")
	}
	return nil
}

// watchSQL is what a call asks for, until the end of this statement's transaction.
const watchSQL = `select set_config('client_connection_check_interval'::text, '1000'::text, true)`

// checkWatch asks for it, because whether the server's system can watch a socket
// shows in nothing else: it cannot on Windows, nor on macOS before PostgreSQL 15.
func (p *patient) checkWatch(ctx context.Context) error {
	var set string
	err := p.query(ctx, "setting client_connection_check_interval", watchSQL, nil, &set)
	if !remedy.RefusesSetting(err, "client_connection_check_interval") {
		return err
	}
	p.find(Note, "client check", "the server refuses client_connection_check_interval: it notices a client that has died in the middle of a statement only when the statement ends, and the key stays taken until then",
		"bound the statements, with statement_timeout for the role or in the function; the end of a client between two statements is noticed all the same")
	return nil
}

// sessionSQL takes the idle timeout from pg_settings, which has it in milliseconds.
const sessionSQL = `
select current_setting('default_transaction_read_only'::text)::bool,
	current_setting('default_transaction_isolation'::text),
	current_setting('synchronous_commit'::text),
	current_setting('synchronous_standby_names'::text),
	(select setting::bigint from pg_settings where name = 'idle_in_transaction_session_timeout'),
	inet_client_addr() is not null,
	current_setting('tcp_keepalives_idle'::text)::bigint,
	current_setting('tcp_keepalives_interval'::text)::bigint * current_setting('tcp_keepalives_count'::text)::bigint,
	current_setting('server_encoding'::text), current_setting('client_encoding'::text), quote_ident(session_user::text)`

// A session is what the program's connections have by default.
type session struct {
	readOnly                       bool
	isolation, commit, synchronous string
	idleMillis                     int64
	tcp                            bool
	keepalive, probes              int64 // seconds until the first, and from there to the last
	encoding, client               string
	user                           string // who has logged in, quoted: a new connection reads the settings of that role alone
}

// alter is the statement that sets it for each new connection of the program.
func (s session) alter(setting string) string { return "alter role " + s.user + " set " + setting }

// checkSession looks at what matters to calls alone.
func checkSession(ctx context.Context, p *patient) error {
	if !p.role.calls {
		return nil
	}
	var s session
	err := p.query(ctx, "asking for the connection's settings", sessionSQL, nil,
		&s.readOnly, &s.isolation, &s.commit, &s.synchronous, &s.idleMillis, &s.tcp, &s.keepalive, &s.probes,
		&s.encoding, &s.client, &s.user)
	if err != nil {
		return err
	}
	p.checkModes(s)
	p.checkEncoding(s)
	p.checkDeadClients(s)
	return p.checkWatch(ctx)
}

func (p *patient) checkModes(s session) {
	if s.readOnly && p.cfg.TxOptions.AccessMode == "" {
		p.find(Error, "read only", "transactions are read-only by default, so no key can be claimed",
			"unset default_transaction_read_only for the role and the database, or set Config.TxOptions.AccessMode to read write")
	}
	if p.cfg.TxOptions.IsoLevel == "" && (s.isolation == "repeatable read" || s.isolation == "serializable") {
		p.find(Note, "isolation", "transactions are "+s.isolation+" by default: Do runs a function again when PostgreSQL reports a conflict (40001), DoTx cannot",
			"retry 40001 around DoTx; or set Config.TxOptions.IsoLevel, to say that you mean it")
	}
	switch {
	case s.commit == "off":
		p.find(Warning, "synchronous_commit", "synchronous_commit is off: a crash can lose calls that were already answered, effect and key together, and their retries run again",
			"set synchronous_commit = on, at least for this role: "+s.alter("synchronous_commit = on"))
	case s.commit == "local" && s.synchronous != "":
		p.find(Warning, "synchronous_commit", "synchronous_commit is local: COMMIT does not wait for the synchronous standby, so a failover can lose calls that were already answered",
			"set synchronous_commit = on, at least for this role: "+s.alter("synchronous_commit = on"))
	}
}

// checkEncoding: pgx sends UTF-8, and does not say so unless the connection string does.
// PostgreSQL then takes it for the encoding of the database, or for the one that is set
// for the role, and stores other characters than for a program that says it. A database
// of SQL_ASCII keeps the bytes.
func (p *patient) checkEncoding(s session) {
	const remedy = "set client_encoding=UTF8 in the connection string of every program that uses the table, all at the same moment; or let keys be ASCII, as UUIDs are"
	switch {
	case s.encoding == "SQL_ASCII", s.client == "SQL_ASCII" && s.encoding == "UTF8":
	case s.client != "UTF8" && s.client != s.encoding && s.client != "SQL_ASCII":
		p.find(Error, "encoding", fmt.Sprintf("this connection says that it sends %s, where pgx sends UTF-8, and the database has the encoding %s: PostgreSQL would make another text of a key beyond ASCII, which can be another key, so that calls with such a key are refused (ErrInvalidKey)", s.client, s.encoding), remedy)
	case s.client != "UTF8":
		p.find(Warning, "encoding", fmt.Sprintf("the database has the encoding %s, and this connection says that it sends %s, where pgx sends UTF-8: a key with characters beyond ASCII is another one to a program that connects with client_encoding=UTF8", s.encoding, s.client), remedy)
	case s.encoding == "EUC_JP":
		p.find(Note, "encoding", "the database has the encoding EUC_JP: a key with characters beyond ASCII is another one to a program that connects without client_encoding=UTF8, and one with characters that EUC_JP does not have, or with U+00A6 or U+FFE4, which it takes for one, is refused", remedy)
	case s.encoding != "UTF8":
		p.find(Note, "encoding", fmt.Sprintf("the database has the encoding %s: a key with characters beyond ASCII is another one to a program that connects without client_encoding=UTF8, and one with characters that %s does not have is refused", s.encoding, s.encoding), remedy)
	}
}

// patience is how long the key of a client whose machine is gone may stay taken.
const patience = 10 * time.Minute

func (p *patient) checkDeadClients(s session) {
	if silence := time.Duration(s.keepalive+s.probes) * time.Second; s.tcp && silence > patience {
		p.find(Warning, "tcp keepalives",
			fmt.Sprintf("a client machine that vanishes in the middle of a statement is noticed after %v (tcp_keepalives_idle %d s + interval * count %d s), and its key stays taken for as long", silence, s.keepalive, s.probes),
			"set tcp_keepalives_idle = 60, tcp_keepalives_interval = 10 and tcp_keepalives_count = 6, in postgresql.conf or as parameters of the connection string")
	}
	switch idle := time.Duration(s.idleMillis) * time.Millisecond; {
	case idle == 0 && p.cfg.MaxIdle < 0:
		p.find(Warning, "idle timeout", "Config.MaxIdle is off and so is idle_in_transaction_session_timeout: a client that freezes inside a call keeps its key, and holds back vacuum, for ever",
			"leave Config.MaxIdle at its default, or set idle_in_transaction_session_timeout")
	case idle == 0:
		p.find(Note, "idle timeout", "idle_in_transaction_session_timeout is off: Do sets its own (Config.MaxIdle), but a client that freezes in a transaction with DoTx keeps its keys for ever",
			s.alter("idle_in_transaction_session_timeout = '1min'"))
	}
}

const clockSQL = `select (extract(epoch from clock_timestamp()) * 1000000::numeric)::bigint`

// apart is where clocks that a daemon keeps would never be.
const apart = 2 * time.Second

// checkClock compares the middle of the round trip, whose half is the error.
func checkClock(ctx context.Context, p *patient) error {
	var micros int64
	before := p.now()
	if err := p.query(ctx, "asking for the time", clockSQL, nil, &micros); err != nil {
		return err
	}
	trip := p.now().Sub(before)
	ahead := before.Add(trip / 2).Sub(time.UnixMicro(micros))
	if ahead.Abs() > apart+trip/2 {
		p.find(Note, "clock", fmt.Sprintf("this machine's clock is %v apart from the database's", ahead.Abs().Round(time.Second)),
			"keys are not affected, all their times are the database's; mind it when you compare logs, and look after NTP")
	}
	return nil
}
