package idempotency

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// rollbackBound is how long a ROLLBACK may take before the connection is
	// given up, which rolls back as well.
	rollbackBound = 5 * time.Second

	// commitBound is how long the answer to a COMMIT is waited for, before its
	// outcome is in doubt. Deferred constraints and synchronous standbys can
	// take their time, and to give up is to abort what was nearly done.
	commitBound = time.Minute
)

// A session is one transaction of Do on a connection of its own. It ends with
// exactly one of record (when that succeeds), settle and rollback.
type session struct {
	store *Store
	conn  *pgxpool.Conn
	tx    pgx.Tx
	args  []any  // claimArgs
	row   ownRow // once it has claimed the key
	began time.Time
}

// begin starts a transaction and claims key, in one round trip. There is a
// session if and only if the error is nil.
func (s *Store) begin(ctx context.Context, key Key) (*session, finding, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, finding{}, explain("acquire a connection", err)
	}
	began := time.Now()
	args := claimArgs(key, s.cfg.Retention)
	var batch pgx.Batch
	batch.BeginTx(s.cfg.TxOptions)
	batch.Queue(settingsSQL, s.idle...)
	batch.Queue(s.sql.claim, args...)
	batch.Queue(s.sql.read, args[:2:2]...)

	results := conn.SendBatch(ctx, &batch)
	x := &session{store: s, conn: conn, tx: results.Tx(), args: args, began: began}
	f, err := readBegin(results)
	if err == nil && f.state == expired {
		f, err = x.takeOver(ctx)
	}
	if err != nil {
		x.rollback()
		return nil, finding{}, explain("claim the key", err)
	}
	x.row = f.row
	return x, f, nil
}

func readBegin(results pgx.BatchResults) (f finding, err error) {
	defer func() {
		if closeErr := results.Close(); err == nil {
			err = closeErr
		}
	}()
	for range 2 { // BEGIN and the settings
		if _, err := results.Exec(); err != nil {
			return finding{}, err
		}
	}
	f, err = readClaim(results.QueryRow())
	if err != nil || f.state == claimed {
		return f, err
	}
	return readFound(results.QueryRow())
}

// takeOver makes an expired row this transaction's own, unless another call is
// doing so.
func (x *session) takeOver(ctx context.Context) (finding, error) {
	return readClaim(x.tx.QueryRow(ctx, x.store.sql.takeOver, x.args[:3:3]...))
}

// A failure is an attempt that did not end with an acknowledged COMMIT.
type failure struct {
	err       error
	transient bool      // the same function can succeed in a new transaction
	inDoubt   bool      // the COMMIT was sent, and may have taken effect
	sent      time.Time // when it was sent
}

// run calls fn on the transaction.
func (x *session) run(ctx context.Context, fn function) ([]byte, *failure) {
	stored, err := runGuarded(ctx, x.tx, fn)
	if err == nil {
		return stored, nil
	}
	// An error of another connection of fn's, or of its context, is its own.
	lost := x.closed() && lostConnection(err) && !x.outlastedMaxIdle()
	return nil, &failure{err: err, transient: conflicted(err) || lost}
}

// commit stores the result and commits, in one round trip. When the row is not
// there the record fails, which keeps the COMMIT behind it from being executed:
// the batch has one Sync.
func (x *session) commit(rec *record) *failure {
	// Not the caller's context: to cancel a COMMIT is to put it in doubt.
	ctx, cancel := context.WithTimeout(context.Background(), commitBound)
	defer cancel()
	sent := time.Now()
	err := x.finish(ctx, x.store.sql.recordOf(x.row), recordArgs(x.args, x.row, rec)...)
	if err != nil {
		// A COMMIT or a function that took too long will do so again.
		tooLong := errors.Is(err, context.DeadlineExceeded) || endedForItsTime(err) || x.outlastedMaxIdle()
		return &failure{
			err:       err,
			transient: conflicted(err) || x.closed() && !tooLong,
			inDoubt:   !x.inTransaction() && !provesAbort(err),
			sent:      sent,
		}
	}
	x.conn.Release()
	return nil
}

// settle ends a session that found a record while a commit is in doubt. The
// record can be of a commit that the server has made visible but not yet
// replicated, because the wait for the standby was cancelled. After a write of
// our own that has waited in full, the record is as durable as any.
func (x *session) settle(ctx context.Context) error {
	if err := x.finish(ctx, settleSQL); err != nil {
		x.rollback()
		return err
	}
	x.conn.Release()
	return nil
}

// finish sends one statement of ours and COMMIT. A nil error is an acknowledged COMMIT.
func (x *session) finish(ctx context.Context, sql string, args ...any) (err error) {
	var batch pgx.Batch
	batch.Queue(sql, args...)
	batch.Queue(x.store.commitSQL())
	results := x.conn.SendBatch(ctx, &batch)
	defer func() {
		if closeErr := results.Close(); err == nil {
			err = closeErr
		}
	}()
	if _, err := results.Exec(); err != nil {
		return explainRecord(err)
	}
	tag, err := results.Exec()
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return pgx.ErrTxCommitRollback
	case err != nil && sqlState(err) == "":
		return explain("commit", err)
	}
	return err // of PostgreSQL: the caller's own deferred constraint, for example
}

// inTransaction: the server has said that the transaction is still open, so
// its COMMIT was not executed.
func (x *session) inTransaction() bool {
	return !x.closed() && x.conn.Conn().PgConn().TxStatus() != 'I'
}

// outlastedMaxIdle: PostgreSQL may have ended the session for its silence. When
// the next write fails, as it does on a Unix socket, its error is never read.
func (x *session) outlastedMaxIdle() bool {
	limit := x.store.cfg.MaxIdle
	return limit > 0 && time.Since(x.began) >= limit
}

func (x *session) closed() bool { return x.conn.Conn().IsClosed() }

// rollback ends the transaction whatever state it is in, and gives the
// connection back; the pool destroys one that is broken.
func (x *session) rollback() {
	// Not the caller's context: a cancelled ROLLBACK costs the connection.
	ctx, cancel := context.WithTimeout(context.Background(), rollbackBound)
	defer cancel()
	if x.inTransaction() {
		_ = x.tx.Rollback(ctx) // on failure pgx closes the connection
	}
	x.conn.Release()
}

func (s *Store) commitSQL() string {
	if query := s.cfg.TxOptions.CommitQuery; query != "" {
		return query
	}
	return "commit"
}

// doTx is DoTx on stored values.
func (s *Store) doTx(ctx context.Context, tx pgx.Tx, key Key, w work) (replayed bool, err error) {
	return s.call(ctx, "DoTx", key, w, func(c *call, ctx context.Context) (*record, error) { return c.doTx(ctx, tx) })
}

// doTx returns the record that it found, or neither record nor error when the
// function's result is recorded in tx.
func (c *call) doTx(ctx context.Context, tx pgx.Tx) (*record, error) {
	if err := c.admit(ctx); err != nil {
		return nil, err
	}
	sp, rec, err := c.claimIn(ctx, tx)
	if sp == nil {
		return rec, err
	}
	recorded := false
	defer func() { // also when the function panics or calls runtime.Goexit
		if !recorded {
			sp.rollback(ctx)
		}
	}()
	stored, err := runGuarded(ctx, tx, c.run)
	if err == nil {
		err = sp.record(ctx, &record{fingerprint: c.key.Fingerprint, result: stored, origin: c.origin})
	}
	recorded = err == nil
	return nil, err
}

// claimIn returns a savepoint that owns the key, or the record that it found.
func (c *call) claimIn(ctx context.Context, tx pgx.Tx) (*savepoint, *record, error) {
	for {
		sp := &savepoint{store: c.store, tx: tx, args: claimArgs(c.key, c.store.cfg.Retention)}
		f, err := sp.claim(ctx)
		if err == nil && f.state == claimed {
			return sp, nil, nil
		}
		sp.rollback(ctx)
		switch {
		case err != nil:
			return nil, nil, explain("claim the key", err)
		case f.state == recorded:
			return nil, f.rec, nil
		case f.state == abandoned:
			return nil, nil, sp.incomplete(ctx)
		}
		if err := c.wait(ctx, ErrInProgress); err != nil {
			return nil, nil, err
		}
	}
}

// The name may be used again by a DoTx inside fn: PostgreSQL then means the
// innermost, which is released before fn returns.
const (
	savepointSQL  = "savepoint idempotency_claim"
	rollbackToSQL = "rollback to savepoint idempotency_claim"
	releaseSQL    = "release savepoint idempotency_claim"
)

// A savepoint holds a claim inside a transaction that is the caller's.
type savepoint struct {
	store  *Store
	tx     pgx.Tx
	args   []any // claimArgs
	row    ownRow
	stands bool // else its name may mean the savepoint of an outer DoTx
}

// claim sets the savepoint and claims the key.
func (sp *savepoint) claim(ctx context.Context) (finding, error) {
	sql := &sp.store.sql
	f, err := sp.set(ctx, sql.claim, sp.args...)
	if err == nil && f.state != claimed {
		f, err = readFound(sp.tx.QueryRow(ctx, sql.readInTx, sp.args[:2:2]...))
	}
	if err == nil && f.state == expired {
		f, err = readClaim(sp.tx.QueryRow(ctx, sql.takeOver, sp.args[:3:3]...))
	}
	sp.row = f.row
	return f, err
}

// incomplete is the error of a row that has no result.
func (sp *savepoint) incomplete(ctx context.Context) error {
	var own bool
	if err := sp.tx.QueryRow(ctx, sp.store.sql.owns, sp.args[2]).Scan(&own); err != nil {
		return explain("claim the key", err)
	}
	if own { // with a context, or a Store, that is not the function's
		return fmt.Errorf("%w: it is a function of the same transaction that made this call", ErrInProgress)
	}
	return ErrAbandoned
}

// set sends the savepoint by itself, not in a batch with the claim: pgx prepares
// a statement that it has not cached ahead of the batch, and if that failed (no
// such table) the caller's transaction would be broken, with no savepoint to go
// back to.
func (sp *savepoint) set(ctx context.Context, claim string, args ...any) (finding, error) {
	if _, err := sp.tx.Exec(ctx, savepointSQL); err != nil {
		return finding{}, err
	}
	sp.stands = true
	return readClaim(sp.tx.QueryRow(ctx, claim, args...))
}

func (sp *savepoint) record(ctx context.Context, rec *record) error {
	// A nil error of fn is recorded, whatever the context says by now.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitBound)
	defer cancel()
	var batch pgx.Batch
	batch.Queue(sp.store.sql.recordOf(sp.row), recordArgs(sp.args, sp.row, rec)...)
	batch.Queue(releaseSQL)
	return explainRecord(sp.tx.SendBatch(ctx, &batch).Close())
}

// rollback undoes everything since the savepoint, the advisory lock included.
// Where that fails (the function has left a query open), nothing of it may be
// committed: the connection is closed.
func (sp *savepoint) rollback(ctx context.Context) {
	if !sp.stands {
		return
	}
	sp.stands = false
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackBound)
	defer cancel()
	if _, err := sp.tx.Exec(ctx, rollbackToSQL+"; "+releaseSQL); err != nil {
		_ = sp.tx.Conn().Close(ctx)
	}
}

// A function is the caller's, as a call runs it.
type function func(ctx context.Context, tx pgx.Tx) (stored []byte, err error)

// runGuarded calls fn with tx behind a guard, and checks afterwards that tx can
// still commit what fn did.
func runGuarded(ctx context.Context, tx pgx.Tx, fn function) ([]byte, error) {
	guard := guardTx(tx)
	defer guard.end()
	stored, err := fn(ctx, guard)
	if err != nil {
		return nil, err
	}
	return stored, checkOpen(tx)
}

func checkOpen(tx pgx.Tx) error {
	conn := tx.Conn().PgConn()
	switch {
	case conn.IsBusy():
		return errors.New("idempotency: the function returned with a query still open: close its rows")
	case conn.IsClosed():
		return fmt.Errorf("idempotency: the function returned nil although its connection was lost: %w", pgconn.ErrConnClosed)
	case conn.TxStatus() == 'E':
		return fmt.Errorf("idempotency: the function returned nil although one of its statements failed: %w", pgx.ErrTxCommitRollback)
	case conn.TxStatus() == 'I':
		return fmt.Errorf("%w: the function ended the transaction itself", ErrOutcomeUnknown)
	}
	return nil
}
