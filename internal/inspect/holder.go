package inspect

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency/internal/keylock"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A Holder is a session whose transaction has the key's advisory lock: a call at
// work on it, or one that has just replayed it.
type Holder struct {
	PID         int32    `json:"pid"` // 0: a prepared transaction, which no process has
	Application string   `json:"application,omitempty"`
	User        string   `json:"user,omitempty"`
	Client      string   `json:"client,omitempty"` // its address, or [local] for a Unix socket
	State       string   `json:"state,omitempty"`
	Start       *Instant `json:"transaction_start"`   // null: this role may not see it
	Seconds     *Seconds `json:"transaction_seconds"` // likewise
	Waiting     string   `json:"waiting_for,omitempty"`
	Grant       string   `json:"grant,omitempty"` // what would show the rest to this role
}

// targets are where to scan the holderColumns into.
func (h *Holder) targets() []any {
	return []any{&h.PID, &h.Application, &h.User, &h.Client, &h.State, &h.Start, &h.Seconds, &h.Waiting, &h.Grant}
}

// Seconds come from the server as microseconds, a whole number.
type Seconds float64

func (s *Seconds) ScanInt64(micros pgtype.Int8) error {
	*s = Seconds(micros.Int64) / 1e6
	return nil
}

// Replicating reports whether its COMMIT has taken effect on this server, and waits for
// another.
func (h Holder) Replicating() bool { return h.Waiting == "SyncRep" }

func (h Holder) String() string {
	if h.PID == 0 {
		return "a prepared transaction (see pg_prepared_xacts)"
	}
	text := fmt.Sprintf("process %d", h.PID)
	var about []string
	for _, part := range []struct{ name, value string }{{"", h.Application}, {"user ", h.User}, {"client ", h.Client}, {"", h.State}} {
		if part.value != "" {
			about = append(about, part.name+Plain(part.value))
		}
	}
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	return text + " " + h.Since()
}

// Since is how long it has the key.
func (h Holder) Since() string {
	switch {
	case h.Grant != "":
		return "since a time that this role may not see, like the client and the state (a member of pg_monitor may: " + Plain(h.Grant) + ")"
	case h.Seconds == nil || h.Start == nil:
		return "since a time that the server does not tell"
	}
	return "for " + Span(time.Duration(float64(*h.Seconds)*float64(time.Second))) + ", since " + h.Start.String()
}

// Remedy is how to end it.
func (h Holder) Remedy() string {
	if h.PID == 0 {
		return "commit prepared or rollback prepared ends it"
	}
	return fmt.Sprintf("end it with select pg_terminate_backend(%d)", h.PID)
}

// holderColumns are those of a holder. Of the sessions of other roles, everybody sees
// the process, the user and the application, and a member of pg_read_all_stats, which
// pg_monitor is, all: PostgreSQL's manual, "The Cumulative Statistics System".
const holderColumns = `coalesce(l.pid, 0), coalesce(a.application_name, ''), coalesce(a.usename::text, ''),
	coalesce(host(a.client_addr), case when a.client_port = -1 then '[local]' end, ''), coalesce(a.state, ''),
	extract(epoch from a.xact_start)::text, (extract(epoch from clock_timestamp() - a.xact_start) * 1000000::numeric)::bigint, coalesce(a.wait_event, ''),
	case when a.pid is not null and a.state is null then 'grant pg_monitor to '::text || quote_ident(current_user::text) else '' end`

// keyLocks are the locks that claims take: a number of 64 bits, of which pg_locks
// shows the two halves. The row of a call in progress is invisible.
const keyLocks = `pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
	and l.database = (select oid from pg_database where datname = current_database())`

// lockNumber is what keylock.ID has made of the key.
const lockNumber = `((l.classid::bigint << 32) | l.objid::bigint) # 'idempotency_keys'::regclass::oid::bigint`

const holderSQL = `
select ` + holderColumns + `
from ` + keyLocks + `
	and ` + lockNumber + ` = $1::bigint`

// ofCalls takes for a call what has, in the transaction with such a lock, also the lock of a
// write to the table, or, as while a procedure asks somebody else, of having read its
// operation.
const ofCalls = `exists (
		select from pg_locks t
		where t.virtualtransaction = l.virtualtransaction and t.locktype = 'relation' and t.granted
			and (t.mode = 'RowExclusiveLock' and t.relation = 'idempotency_keys'::regclass::oid or t.relation = to_regclass('idempotency_operations'::text)::oid))`

// Holders are those of one key.
func (t *Table) Holders(ctx context.Context, q Querier, scope, id string) ([]Holder, error) {
	rows, _ := q.Query(ctx, t.On(holderSQL), keylock.ID(scope, id))
	holders, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h Holder, err error) {
		err = row.Scan(h.targets()...)
		return h, err
	})
	return holders, remedy.Of(err, t.Schema)
}

const heldSQL = `
select ` + lockNumber + `, ` + holderColumns + `
from ` + keyLocks + `
	and ` + ofCalls

// HeldLocks are the locks of the calls in progress, by their numbers.
func (t *Table) HeldLocks(ctx context.Context, q Querier) (map[int64][]Holder, error) {
	held := make(map[int64][]Holder)
	rows, _ := q.Query(ctx, t.On(heldSQL))
	var number int64
	var h Holder
	_, err := pgx.ForEachRow(rows, append([]any{&number}, h.targets()...), func() error {
		held[number] = append(held[number], h)
		return nil
	})
	return held, remedy.Of(err, t.Schema)
}
