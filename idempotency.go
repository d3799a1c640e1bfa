// Package idempotency runs a business transaction at most once per idempotency
// key and gives every retry the first result. The key's record and the business
// writes commit in the same PostgreSQL transaction, so there is no moment, crash
// or lost connection in which one is durable without the other.
//
// For most uses, [New] and [Do] are all you need:
//
//	store := idempotency.New(pool)
//	key := idempotency.Key{Scope: customerID, ID: "charge/" + requestID}
//	charge, replayed, err := idempotency.Do(ctx, store, key,
//		func(ctx context.Context, tx pgx.Tx) (Charge, error) {
//			return createCharge(ctx, tx, request)
//		})
//
// The client makes the requestID, a new one for each operation, and sends the
// same one with every retry. The key names the operation too: if a "place" and a
// "cancel" shared a key, the cancel would be answered with the result of the
// place, and would not happen. A requestID from the Idempotency-Key header field
// is used without its quotes, as package idemhttp reads it: "abc" and abc would
// be two keys. Calling again is always safe, whatever happened before.
//
// A nil error is recorded; an error is not, and leaves nothing behind. So a
// final refusal, such as a declined card, is a value returned with a nil error.
// To undo its partial writes the function uses a savepoint ([pgx.BeginFunc] on
// its transaction) and then returns the refusal.
//
// The table is made by the package
// [github.com/pgidem/idempotency/migrations], before the first call: by the
// program when it starts, or by whoever deploys it.
package idempotency

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keylock"
)

// The errors a caller can decide on, with [errors.Is].
var (
	// ErrInProgress: another call for the key is running, and [Config.Wait] is
	// over. Nothing was executed by this call; call again later.
	ErrInProgress = errors.New("idempotency: a call with this key is in progress: retry later")

	// ErrKeyReused: the key belongs to a request with another fingerprint.
	// Nothing was executed. Calling again does not help: a new operation needs
	// a new key.
	ErrKeyReused = errors.New("idempotency: key was used for another request: use a new key for a new operation")

	// ErrInvalidKey: a field of the [Key] is empty, too long, or no text that
	// PostgreSQL can store, which can depend on the encoding of the database. The
	// error names it.
	ErrInvalidKey = errors.New("idempotency: invalid key")

	// ErrNotFound: there is no result for the key, or it has expired.
	ErrNotFound = errors.New("idempotency: no result for this key")

	// ErrOutcomeUnknown: the connection was lost during COMMIT, and PostgreSQL
	// could not be asked within 30 seconds whether it committed. Either both the
	// effect and the record are there, or neither is. Calling again with the same
	// key finds out, and is safe.
	//
	// Do also returns it, with another text, when the function sent COMMIT or ROLLBACK
	// as SQL. After a COMMIT, the next call gets ErrAbandoned.
	ErrOutcomeUnknown = errors.New("idempotency: the outcome is unknown: call again with the same key")

	// ErrAbandoned: an earlier function with this key sent COMMIT as SQL. Its
	// writes are there, and its result is not. Nothing was executed by this
	// call, and calling again does not help. Look at what the function has
	// written, then use [Store.Delete].
	ErrAbandoned = errors.New("idempotency: an earlier function with this key sent COMMIT as SQL, so that its writes are there and its result is not, and calling again does not help: the operation may have taken effect: free the key with Store.Delete, or the command `idempotency delete`, only if it is to run again")

	// ErrTooLarge: the function's result is larger than [Config.MaxResult].
	// Everything was rolled back.
	ErrTooLarge = errors.New("idempotency: result too large to record")

	// ErrUndecodable: the result does not survive storage as JSON in the
	// caller's type. There are two cases, and the error says which. First call: the
	// function has run, nothing of this call was kept, the error names the field, and
	// calling again does not help before the type is changed. Replay: the operation
	// took effect earlier, perhaps in another release of the program, and nothing was
	// executed now.
	ErrUndecodable = errors.New("idempotency: result cannot be stored and read back as JSON")
)

// A Key names one operation.
//
// Keys beyond ASCII need client_encoding=UTF8 in every program, unless the database
// itself is UTF8. pgx sends UTF-8 without telling the server. The server then reads the
// bytes in its own encoding, and the same text of a program that tells it is another key.
// The doctor names such connections.
//
// Some keys beyond ASCII are ErrInvalidKey: all of them where client_encoding is neither
// UTF8 nor that of the database, because PostgreSQL would convert two keys to one; U+0080
// to U+009F in a database that is not UTF8; U+00A6 and U+FFE4 in one of EUC_JP.
type Key struct {
	// Scope separates those who make keys, such as tenants or customers, and
	// operations that must not meet. The same ID in two scopes is two keys.
	// Required, 1 to 255 bytes of UTF-8 without NUL.
	Scope string

	// ID is the idempotency key that the client sent. Time-ordered ids
	// (UUIDv7) are the cheapest. Required, 1 to 255 bytes of UTF-8 without NUL.
	ID string

	// Fingerprint identifies what the operation was asked to do. A key that is
	// sent with another request then gets ErrKeyReused, and not the result of
	// this one. Optional. See FingerprintOf.
	Fingerprint Fingerprint
}

func (k Key) validate() error {
	if err := validateText("Scope", k.Scope); err != nil {
		return err
	}
	return validateText("ID", k.ID)
}

// maxKeyBytes keeps an index entry small.
const maxKeyBytes = 255

func validateText(field, text string) error {
	if problem := problemOf(text); problem != "" {
		return fmt.Errorf("%w: Key.%s %s", ErrInvalidKey, field, problem)
	}
	return nil
}

// problemOf says why a text cannot be stored as a part of a key, or as a name.
func problemOf(text string) string {
	switch {
	case text == "":
		return "is empty"
	case len(text) > maxKeyBytes:
		return fmt.Sprintf("has %d bytes, more than %d", len(text), maxKeyBytes)
	case !utf8.ValidString(text):
		return "is not valid UTF-8"
	case strings.IndexByte(text, 0) >= 0:
		return "contains a NUL byte"
	}
	return ""
}

// lockID is the key's place among PostgreSQL's advisory locks.
func (k Key) lockID() int64 { return keylock.ID(k.Scope, k.ID) }

// A Fingerprint identifies what a request asks for. The zero value is compared too:
// a key first used without a fingerprint is not replayed with one, nor the reverse.
type Fingerprint [sha256.Size]byte

// FingerprintOf is a SHA-256 of the parts, each with its length, so that
// ("ab", "c") is not ("a", "bc").
func FingerprintOf(parts ...[]byte) Fingerprint {
	h := sha256.New()
	var length [8]byte
	for _, part := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	var f Fingerprint
	h.Sum(f[:0])
	return f
}

// Config is the configuration of a Store. The zero value of each field means
// its default. [Key] says which client_encoding other keys than ASCII need.
type Config struct {
	// Schema of the table. Set it if the connections of one pool do not all find the
	// same table: a Store uses one table, and refuses a connection whose search_path
	// leads to another. Default: the schema in which the search_path of the Store's
	// first connection finds the table, temporary tables aside. The Store looks for it
	// again when PostgreSQL says that the table is no longer there.
	Schema string

	// Retention is how long a result can be replayed, by the database's clock,
	// from the moment it is recorded. Afterwards the key is free again. It has
	// to be longer than clients retry, and longer than the network can delay a
	// statement. Default: 24 hours.
	Retention time.Duration

	// Wait is how long a call waits for another one with the same key before it
	// fails with ErrInProgress. Negative: not at all. In one process at most 15,000
	// calls wait for one key; the next one fails at once. Default: 10 seconds.
	Wait time.Duration

	// MaxIdle is the longest silence between two statements of Do's
	// transaction, and of those of Delete and Purge. PostgreSQL then ends it
	// (idle_in_transaction_session_timeout), so that a frozen process frees its
	// key and can never commit afterwards.
	// Negative: no limit. Default: 1 minute.
	MaxIdle time.Duration

	// MaxResult is the size of the largest result, in bytes of JSON, that is
	// recorded; a larger one is ErrTooLarge. At most 256 MiB. Default: 1 MiB.
	MaxResult int

	// TxOptions are the isolation level and the other modes of Do's
	// transaction; it cannot be read-only. BeginQuery and CommitQuery are one statement
	// each. Default: those of the connection.
	TxOptions pgx.TxOptions

	// CallWindow bounds the repetition of a [Call] whose outcome is not known: it is made
	// again with the same key for so long after it was begun. It has to be shorter than
	// the other side remembers a key. Default: 23 hours.
	CallWindow time.Duration

	// CallPool is a pool for procedures, which may use all of its connections. Default:
	// the Store's pool, of which calls under way use half at most, and one at least.
	// Further calls wait, without a connection, until their contexts end.
	CallPool *pgxpool.Pool

	// CallNamespace is a part of the keys that a Call sends. Services that share an
	// account at a provider need different ones if their keys could be the same. So do
	// Stores whose tables are in different schemas or databases, such as one for each
	// tenant, because neither name is part of the key. Changing it makes new keys.
	CallNamespace string

	// Observe is called after every operation, on the caller's goroutine. No
	// transaction of the Store is open then, except for a DoTx, whose caller has not
	// committed, and for the steps and calls of a procedure. Default: not called.
	Observe func(context.Context, Event)

	// ObserveKeys fills in Event.Key. What clients send as a key can be personal
	// or secret: keep it out of logs and metrics. Default: left empty.
	ObserveKeys bool

	// Trace is called before every operation, with the name that will be
	// Event.Operation. The function and Observe get the context that it returns,
	// which has to be derived from the given one. The text, for example a W3C
	// traceparent, is stored with the result as its origin; that of a step or a
	// call is not. A text is left out if it has more than 255 bytes, is not UTF-8,
	// has a NUL, or is beyond ASCII while the database or the client does not use
	// UTF-8. Default: no origin.
	Trace func(ctx context.Context, operation string) (context.Context, string)
}

const maxResultLimit = 256 << 20

func (c Config) withDefaults() Config {
	c.Retention = cmp.Or(c.Retention, 24*time.Hour)
	c.Wait = cmp.Or(c.Wait, 10*time.Second)
	c.MaxIdle = cmp.Or(c.MaxIdle, time.Minute)
	c.MaxResult = cmp.Or(c.MaxResult, 1<<20)
	c.CallWindow = cmp.Or(c.CallWindow, 23*time.Hour)
	return c
}

func (c Config) validate() error {
	problem := ""
	switch {
	case strings.IndexByte(c.Schema, 0) >= 0 || !utf8.ValidString(c.Schema):
		problem = "Schema is not a name: it has a NUL byte or is not valid UTF-8"
	case c.Retention < time.Millisecond:
		problem = fmt.Sprintf("Retention is %v: it has to be a millisecond or more", c.Retention)
	case c.MaxIdle > 0 && c.MaxIdle < time.Millisecond:
		problem = fmt.Sprintf("MaxIdle is %v: it has to be a millisecond or more, or negative for no limit", c.MaxIdle)
	case c.MaxIdle > maxServerTimeout:
		problem = fmt.Sprintf("MaxIdle is %v: PostgreSQL takes at most %v; negative means no limit", c.MaxIdle, maxServerTimeout)
	case c.MaxResult < 0 || c.MaxResult > maxResultLimit:
		problem = fmt.Sprintf("MaxResult is %d: it has to be 1 to %d bytes, or 0 for the default", c.MaxResult, maxResultLimit)
	case c.CallWindow < time.Millisecond:
		problem = fmt.Sprintf("CallWindow is %v: it has to be a millisecond or more", c.CallWindow)
	case c.TxOptions.AccessMode == pgx.ReadOnly:
		problem = "TxOptions.AccessMode is read only: the record could not be written"
	case !isOne(c.TxOptions.BeginQuery, "begin", "start"):
		problem = "TxOptions.BeginQuery is not one BEGIN or START TRANSACTION: it shares a round trip with the claim, and a setting has to be made by the connection or inside the function"
	case !isOne(c.TxOptions.CommitQuery, "commit", "end"):
		problem = "TxOptions.CommitQuery is not one COMMIT or END"
	default:
		return nil
	}
	return errors.New("idempotency: Config." + problem)
}

// isOne reports whether query is empty or one statement that begins with one of words.
func isOne(query string, words ...string) bool {
	query = strings.TrimRight(query, "; \t\r\n")
	if query == "" {
		return true
	}
	return !strings.Contains(query, ";") && slices.Contains(words, strings.ToLower(strings.Fields(query)[0]))
}

// A Store keeps the results of one table. It is safe for concurrent use. Between
// calls it holds no connection and no goroutine, except for the ROLLBACK that
// follows a replay, for 5 seconds at most. If that ROLLBACK hangs with its connection,
// pgx takes up to 15 seconds more to give the place in the pool back.
//
// Callers in one process should share one Store. Duplicates then wait for each other
// without a connection, and replays of recent keys are cheap: the hashes of these keys
// are kept in 512 KiB that all Stores of a process share.
type Store struct {
	pool  *pgxpool.Pool
	cfg   Config
	table table
	gate  gate

	memory memory

	// The arguments of every claim, boxed once.
	retention, idleTimeout any

	// places are for the calls under way.
	places chan struct{}

	// unwatched: the server refuses client_connection_check_interval.
	unwatched atomic.Bool

	// For operations that are one statement.
	strict           atomic.Bool // the transactions are SERIALIZABLE
	cachesStatements bool        // the pool's query exec mode does
	hasTxOptions     bool        // so that there is a BEGIN and a COMMIT:
	beginText        named
	commitText       named
}

// New returns a Store with the default configuration.
func New(pool *pgxpool.Pool) *Store {
	s, err := NewWithConfig(pool, Config{})
	if err != nil {
		panic(err) // the defaults are valid
	}
	return s
}

// NewWithConfig returns a Store, or an error that names the field of cfg that
// cannot be used. It does not connect.
func NewWithConfig(pool *pgxpool.Pool, cfg Config) (*Store, error) {
	if pool == nil {
		return nil, errors.New("idempotency: pool is nil")
	}
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Store{pool: pool, cfg: cfg, retention: interval(cfg.Retention), idleTimeout: idleTimeout(cfg.MaxIdle)}
	s.memory.seed = maphash.MakeSeed()
	s.places = make(chan struct{}, callsAtOnce(pool, cfg.CallPool))
	s.strict.Store(cfg.TxOptions.IsoLevel == pgx.Serializable)
	s.cachesStatements = pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement
	s.hasTxOptions = cfg.TxOptions != pgx.TxOptions{}
	s.beginText, s.commitText = newNamed(beginSQL(cfg.TxOptions)), newNamed(s.commitSQL())
	s.table.schema = cfg.Schema
	return s, nil
}

// Config returns the configuration of s, with the defaults filled in.
func (s *Store) Config() Config { return s.cfg }

// Do runs fn in a transaction of its own, once per key within the retention,
// and returns its value; every later call with the key returns the recorded
// value without running fn. Replayed is true when the value does not come from
// this call's own acknowledged COMMIT.
//
// The value is stored as JSON and decoded again before COMMIT. The first call returns
// the decoded value. If JSON would lose the value without an error, such as a struct
// that has only unexported fields or a large integer in an interface, the first call
// fails with [ErrUndecodable]. See docs/guarantees.md on what a value's type may be, and
// how it may change between releases.
//
// What Do does, by what happens:
//   - fn returns a nil error: the value is recorded and everything commits, also
//     when ctx has ended meanwhile.
//   - fn returns an error, panics or calls [runtime.Goexit]: everything is rolled
//     back, the key included, and the error comes back unchanged. The next
//     call runs fn. (Exception: when fn fails by a deadline and every connection of the
//     pool was in use, Do wraps the error to say so; [errors.Is] finds it.)
//   - a duplicate runs at the same time, in any process: this call waits for it,
//     then returns its value, or takes over if it failed. After [Config.Wait]
//     it fails with [ErrInProgress]; when ctx ends, with its error.
//   - ctx ends during the claim: fn is not run, and Do fails with ctx's error. It
//     first waits up to 100 ms for the answer of PostgreSQL, because the connection
//     would be lost without it.
//   - PostgreSQL reports a serialization failure or a deadlock (40001, 40P01), or
//     that the plan of a prepared statement is out of date, or the connection is
//     lost before COMMIT: fn is run again in a new transaction, after a short
//     random pause, 10 times at most; then the last error.
//   - the answer to COMMIT is lost, or takes longer than a minute: Do finds out
//     by claiming the key again, which waits for the old transaction to end. It
//     returns the recorded value, or runs fn once more. When it cannot find out
//     within 30 seconds, whatever ctx says, it fails with [ErrOutcomeUnknown].
//   - the process dies or freezes: nothing is committed, and the key is free as
//     soon as PostgreSQL notices, after [Config.MaxIdle] at the latest.
//
// So fn must have no effects except through tx, and may be run more than once.
// It must not end tx: Commit and Rollback are refused without any effect. Once fn has
// returned, tx refuses everything. What fn got from tx.Conn and tx.LargeObjects does
// not refuse, and must not be used any more.
// Statements sent through the pool instead of tx are not protected. An fn that
// swallows an SQL error and returns nil has a broken transaction: Do returns an
// error that wraps [pgx.ErrTxCommitRollback], and nothing is kept.
//
// A call for the same key from inside fn, with its ctx, fails with
// ErrInProgress instead of waiting for itself.
//
// A lock on the whole table (ALTER TABLE, VACUUM FULL) is waited for until ctx
// ends: Config.Wait does not bound that.
//
// See also [ErrKeyReused], [ErrInvalidKey], [ErrTooLarge], [ErrUndecodable] and
// [ErrAbandoned].
func Do[T any](ctx context.Context, s *Store, key Key, fn func(ctx context.Context, tx pgx.Tx) (T, error)) (value T, replayed bool, err error) {
	r := result[T]{fn: fn, limit: s.cfg.MaxResult}
	return r.values(s.call(ctx, "Do", nil, key, &r))
}

// DoTx is Do inside the caller's transaction: the claim, fn's writes and the
// record become durable when the caller commits tx, and vanish when the caller
// rolls it back. DoTx neither commits nor retries.
//
// After an error the transaction is usable, and neither the claim nor fn's
// writes remain in it (they are in a savepoint). If they cannot be undone, for
// example because fn left a query open, DoTx closes the connection.
// An error of PostgreSQL, such as 40001, comes back as it is, for the caller's
// own retry loop.
//
// Until the caller's transaction ends, other calls with the key wait for it, as
// they do for Do. Transactions that use several keys should take them in the
// same order; else they wait for each other until Config.Wait is over. Each key
// holds one advisory lock: thousands in one transaction can exhaust the server's
// lock table (max_locks_per_transaction). Config.MaxIdle and Config.TxOptions
// do not apply: the transaction is the caller's.
func DoTx[T any](ctx context.Context, s *Store, tx pgx.Tx, key Key, fn func(ctx context.Context, tx pgx.Tx) (T, error)) (value T, replayed bool, err error) {
	r := result[T]{fn: fn, limit: s.cfg.MaxResult}
	return r.values(s.call(ctx, "DoTx", tx, key, &r))
}

// QueryRow is [Do] for an operation that is one SQL statement with one row, in one round
// trip: the statement, its record and COMMIT are sent at once. The row's columns are read
// into T: by their names into a struct or a map, as encoding/json does (the tag is json),
// or the one column into any other T. Null is the zero value, or nil.
//
//	ride, replayed, err := idempotency.QueryRow[Ride](ctx, store, key,
//		"insert into rides (rider, price) values ($1, $2) returning id, rider, price", rider, price)
//
// The statement is a SELECT, VALUES, INSERT, UPDATE, DELETE or (since PostgreSQL 17) MERGE
// that returns rows. It becomes a part of another one, so that several statements, DDL,
// CALL and a WITH that changes data are refused. Make it a constant with parameters: it
// is described once for each text and Store, and 1,000 texts are remembered.
//
// The columns are compared with T before the statement first runs. What would be lost
// or could not be read again is an [ErrUndecodable] with nothing executed: a column
// without a field and a field without a column, a date or a timestamp without a zone into
// a time.Time, a bigint into a float64 or an interface, an interval, and bytea other than
// by encode(..., 'base64') into []byte. PostgreSQL writes the JSON, so that only a value
// that JSON or a time.Time does not have, such as infinity, can still fail to be read after
// the commit; the ErrUndecodable then says that the operation took effect. Where T has
// methods of its own for JSON or text (other than a time.Time, or a type for uuid), and for
// json and types of extensions, the call makes the three round trips of Do instead, and the
// value is read before COMMIT.
//
// What QueryRow does is what Do does, in all its cases, and a record of one is replayed by
// the other. Beyond that:
//   - no row is [pgx.ErrNoRows], and two are [pgx.ErrTooManyRows]; nothing is kept.
//   - PostgreSQL refuses the statement: it is sent once more in the way of Do. So a
//     statement that fails runs twice, and QueryRow returns the second error. The first
//     error is a line in the server's log. Such a line also follows from a duplicate
//     whose key this process does not know.
//   - ctx ends while the statement runs: it is cancelled, and QueryRow returns ctx's error
//     if nothing was committed, or the row if it was. When PostgreSQL does not answer
//     within a second, the outcome is in doubt, as that of a COMMIT.
//   - the connection is lost before the answer: what was sent may still arrive, so that
//     the call ends with the recorded value or with ErrOutcomeUnknown, and never with
//     another error.
//   - [Config.MaxIdle] does not apply, since the transaction is never idle. Under
//     SERIALIZABLE the first call of a Store takes longer, because it finds out the level.
func QueryRow[T any](ctx context.Context, s *Store, key Key, sql string, args ...any) (row T, replayed bool, err error) {
	w := statement[T]{operation: operation{store: s, element: reflect.TypeFor[T](), sql: sql, args: args}}
	return w.values(s.call(ctx, "QueryRow", nil, key, &w))
}

// Query is [QueryRow] for any number of rows, none included: rows is never nil. They come
// in the order in which the statement returns them.
func Query[T any](ctx context.Context, s *Store, key Key, sql string, args ...any) (rows []T, replayed bool, err error) {
	w := statement[[]T]{operation: operation{store: s, element: reflect.TypeFor[T](), many: true, sql: sql, args: args}}
	return w.values(s.call(ctx, "Query", nil, key, &w))
}
