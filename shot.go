package idempotency

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/bytea"
)

// A shot is the outcome of a call in one round trip. The zero shot says that nothing was
// committed, and that the key is to be claimed: Do's way has the last word.
type shot struct {
	executed bool
	found    *answer
	failed   *failure
}

// shoot makes the whole call in one batch, which is one transaction: look for the record,
// fail unless the key is free, run the statement and record what it returns. Whatever
// PostgreSQL refuses before the end proves that nothing was committed.
func (c *invocation) shoot(ctx context.Context) shot {
	w, ok := c.work.(oneStatement)
	if !ok {
		return shot{}
	}
	conn, err := c.store.acquire(ctx)
	if err != nil {
		return shot{failed: &failure{err: explain("acquire a connection", err)}}
	}
	defer conn.Release()
	sql, err := c.store.table.statements(ctx, conn)
	if err != nil {
		return shot{}
	}
	if sql.distributed { // the statement can have its rows on another node than its record
		return shot{}
	}
	e, err := w.effect(ctx, conn.Conn(), sql)
	if err != nil || !e.oneShot { // an error is found again by execute, unless there is a record
		return shot{}
	}
	a := &volley{c: c, conn: conn.Conn(), sql: sql, effect: e, args: w.arguments(), strict: c.store.strict.Load()}
	s, serializable := a.send(ctx)
	if serializable {
		c.store.strict.Store(true)
		a.strict = true
		s, _ = a.send(ctx)
	}
	if !s.executed {
		if a.stage != guarding {
			w.forget(sql)
		}
		return s
	}
	c.store.memory.remember(c.key)
	c.lead.share(a.out)
	if err := w.executed(a.out.result); err != nil {
		return shot{failed: &failure{err: err}}
	}
	return s
}

// A volley is the batch of a call in one round trip.
type volley struct {
	c      *invocation
	conn   *pgx.Conn
	sql    *statements
	effect *effect
	args   []any // of the caller
	strict bool

	out   *answer // what is recorded
	found finding // by the read
	stage stage
}

// A stage is how far the answers of a volley have come.
type stage int

const (
	guarding stage = iota // nothing has been run
	underway              // the statement has begun
	ending                // it is recorded, and the COMMIT is not acknowledged
)

// send sends the batch, and says what became of it. Serializable: it has to be sent with
// the other guard.
func (v *volley) send(ctx context.Context) (s shot, serializable bool) {
	batch, err := v.batch(ctx)
	if err != nil {
		return shot{}, false // nothing was sent, or prepared only
	}
	v.stage, v.found = guarding, finding{}
	v.c.lead.seal()
	sent := time.Now()
	err = interruptible(ctx, v.conn, func(ctx context.Context) error {
		return v.read(v.conn.SendBatch(ctx, batch))
	})
	switch {
	case err == nil:
		return shot{executed: true}, false
	case v.stage == guarding && v.found.state == recorded && !v.found.elsewhere:
		v.rollback()
		v.c.store.memory.remember(v.c.key)
		v.c.lead.share(v.found.answer)
		return shot{found: v.found.answer}, false
	case v.conn.IsClosed():
		v.c.late = true
		return shot{failed: &failure{err: err, transient: true, inDoubt: true, sent: sent}}, false
	case v.stage == ending && !provesAbort(err):
		return shot{failed: &failure{err: err, inDoubt: true, sent: sent}}, false
	}
	v.rollback()
	forgetMissing(v.conn, err)
	return shot{}, v.stage == guarding && strings.Contains(err.Error(), saySerializable)
}

// batch has the statements in the order in which read reads their answers. A transaction
// with options has a BEGIN and a COMMIT of its own; without, the batch is one.
func (v *volley) batch(ctx context.Context) (*pgx.Batch, error) {
	store := v.c.store
	args := store.keyArgs(v.c.key)
	if err := checkSent(v.conn, args.read()...); err != nil {
		return nil, err
	}
	guard, guardArgs, effect := &v.sql.guard, args[:3:3], &v.effect.shot
	if v.strict {
		guard, guardArgs, effect = &v.sql.strictGuard, args[:4:4], &v.effect.strict
	}
	all := []*named{&v.sql.ahead, &v.sql.freeRead, guard, effect}
	if store.hasTxOptions {
		all = append(all, &store.beginText, &store.commitText)
	}
	text, err := store.prepared(ctx, v.conn, all...)
	if err != nil {
		return nil, err
	}
	v.out = v.c.answer(v.conn, nil)
	var batch pgx.Batch
	if store.hasTxOptions {
		batch.Queue(text(&store.beginText)) // not BeginTx, whose statement has no name
	}
	batch.Queue(text(&v.sql.ahead), args[5])
	if !v.strict {
		batch.Queue(text(&v.sql.freeRead), args.read()...)
	}
	batch.Queue(text(guard), guardArgs...)
	batch.Queue(text(effect), append(v.args, args[0], args[1], fingerprintColumn(&v.out.fingerprint), args[3], originColumn(v.out.origin), store.cfg.MaxResult)...)
	if store.hasTxOptions {
		batch.Queue(text(&store.commitText))
	}
	return &batch, nil
}

func (v *volley) read(results pgx.BatchResults) (err error) {
	defer closeResults(results, &err)
	if v.c.store.hasTxOptions {
		if _, err := results.Exec(); err != nil { // BEGIN
			return err
		}
	}
	if _, err := results.Exec(); err != nil { // what is set ahead
		return err
	}
	if !v.strict {
		if v.found, err = readFound(results.QueryRow()); err != nil {
			return err
		}
	}
	if _, err := results.Exec(); err != nil { // the guard
		return err
	}
	v.c.event.Runs++
	v.stage = underway
	var same int32
	var stored bytea.Bytes
	if err := results.QueryRow().Scan(&same, &stored); err != nil {
		return err
	}
	v.stage, v.out.result = ending, stored
	if !v.c.store.hasTxOptions {
		return nil
	}
	tag, err := results.Exec()
	if err == nil && tag.String() == "ROLLBACK" {
		err = pgx.ErrTxCommitRollback
	}
	return err
}

// rollback ends a transaction that PostgreSQL has refused to go on with.
func (v *volley) rollback() {
	if v.conn.IsClosed() || v.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), rollbackBound)
	defer cancel()
	if _, err := v.conn.Exec(ctx, "rollback"); err != nil {
		_ = v.conn.Close(ctx)
	}
}

// beginSQL is the BEGIN of these options, as pgx has it.
func beginSQL(o pgx.TxOptions) string {
	if o.BeginQuery != "" {
		return o.BeginQuery
	}
	words := []string{"begin"}
	if o.IsoLevel != "" {
		words = append(words, "isolation level "+string(o.IsoLevel))
	}
	for _, mode := range []string{string(o.AccessMode), string(o.DeferrableMode)} {
		if mode != "" {
			words = append(words, mode)
		}
	}
	return strings.Join(words, " ")
}
