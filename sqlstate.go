package idempotency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/remedy"
)

// SQLSTATEs, from appendix A of the PostgreSQL manual.
const (
	codeSerializationFailure = "40001"
	codeDeadlock             = "40P01"
	codeLockNotAvailable     = "55P03"
	codeIdleInTransaction    = "25P03"
	codeTransactionTimeout   = "25P04" // since PostgreSQL 17
	codeInvalidText          = "22P02" // raised by recordSQL
	codeNoStatement          = "26000"
	classIntegrity           = "23"
)

func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// conflicted: PostgreSQL rolled the transaction back because of another one,
// and asks for it to be run again.
func conflicted(err error) bool {
	code := sqlState(err)
	return code == codeSerializationFailure || code == codeDeadlock
}

// refusedByPolicy: of row-level security.
func refusedByPolicy(err error) bool {
	return remedy.Raised(err, remedy.NoPrivilege, "ExecWithCheckOptions")
}

// lostClaim: another transaction was first to the key. Above READ COMMITTED the
// loser of an insert gets 40001, even with "do nothing"; a lock_timeout of the
// role can end a wait on the unique index. What a trigger of the table raises by
// itself does not mean that.
func lostClaim(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Routine == "exec_stmt_raise" {
		return false
	}
	return conflicted(err) || pgErr.Code == codeLockNotAvailable && pgErr.Routine == "ProcessInterrupts"
}

// provesAbort reports whether err, the answer to a COMMIT, proves that nothing
// was committed. Nothing else does: a FATAL error can follow a COMMIT that took
// effect, pgconn.SafeToRetry is true for some that did, and a distributed
// engine can report an ERROR for them.
func provesAbort(err error) bool {
	return errors.Is(err, pgx.ErrTxCommitRollback) || conflicted(err) ||
		strings.HasPrefix(sqlState(err), classIntegrity)
}

// stalePlan: the function's statement was prepared before its table was altered. pgx has
// forgotten it by now.
func stalePlan(err error) bool {
	return remedy.Raised(err, remedy.NotSupported, "RevalidateCachedQuery")
}

// endedForItsTime: PostgreSQL ended the transaction because it took, or was
// silent for, too long. The function's next statement hears of it, or its record.
func endedForItsTime(err error) bool {
	code := sqlState(err)
	return code == codeIdleInTransaction || code == codeTransactionTimeout
}

// lostConnection reports whether err says that the connection is gone. Where no
// COMMIT was sent, nothing of its transaction remains.
func lostConnection(err error) bool {
	// pgx closes the connection of a context that ends, and context errors are
	// net.Errors, but here the caller wanted the end.
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		// A function that took too long will do so again.
		return !endedForItsTime(err) && (pgErr.SeverityUnlocalized == "FATAL" || pgErr.SeverityUnlocalized == "PANIC")
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false // it was never there
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// explain says in which of our steps err has come. What to do about it stands in the
// error already, if PostgreSQL's own words do not say enough: see package remedy.
func explain(doing string, err error) error {
	return fmt.Errorf("idempotency: %s: %w", doing, err)
}

// remedied is an error of a statement on the table with what to do about it. Except
// in the record, a key is the only text with which such a statement is sent.
func (sql *statements) remedied(err error) error {
	if sql == nil { // the table could not be looked up
		return err
	}
	if remedy.Unholdable(err) {
		return fmt.Errorf("%w: Key.Scope or Key.ID has a character that the encoding of the database, or of the connection, does not have: %w", ErrInvalidKey, err)
	}
	return remedy.Of(err, sql.schema)
}

// canHold reports whether a text that is not a key's can be sent through conn. Text beyond
// ASCII is certain to arrive as it is only where both sides speak UTF-8, or where the
// database does not mind (SQL_ASCII). A *sql.Tx does not tell.
func canHold(conn *pgx.Conn, text string) bool {
	if !beyondASCII(text) {
		return true
	}
	if conn == nil {
		return false
	}
	e := encodingOf(conn)
	return e.server == "SQL_ASCII" && e.client == e.server || e.client == "UTF8" && (e.server == "UTF8" || e.server == "SQL_ASCII")
}

// explainRecord explains an error of recordSQL. role is the one that the function
// left, if it was asked for.
func (sql *statements) explainRecord(err error, role string) error {
	if err == nil {
		return nil
	}
	const doing = "idempotency: record the result"
	pgErr, _ := errors.AsType[*pgconn.PgError](err)
	said := func(text string) bool {
		return pgErr != nil && pgErr.Code == codeInvalidText && strings.Contains(pgErr.Message, text)
	}
	switch {
	case said(sayTransactionEnded):
		return fmt.Errorf("%w: %w", errTransactionEnded, err)
	case said(sayTableReplaced):
		return fmt.Errorf("%s: %s is not the table in which the key was claimed: the function has put another one in its place: %w", doing, sql.table, err)
	case said(sayRecordChanged):
		return fmt.Errorf("%s: the function removed the row of its own key, or a trigger or rule on %s changed or dropped the record: %w", doing, sql.table, err)
	case refusedByPolicy(err):
		return fmt.Errorf("%s: a policy (row-level security) on %s refuses the record of this role: %w", doing, sql.table, err)
	case remedy.Raised(err, remedy.ReadOnly, "PreventCommandIfReadOnly"):
		return fmt.Errorf("%s: the function has made its transaction read-only, as \"set transaction read only\" does: the record is a write: %w", doing, err)
	case remedy.Denied(err) && role != "":
		return fmt.Errorf("%s: the role of the transaction, %q, needs select, insert and update on %s: grant them, or, if the function has changed the role, reset it before the function returns: %w", doing, role, sql.table, err)
	}
	return explain("record the result", remedy.Of(err, sql.schema))
}

// errTransactionEnded is an ErrOutcomeUnknown for [errors.Is], and says something
// else: calling again does not help if it was a COMMIT.
var errTransactionEnded error = transactionEndedError{}

type transactionEndedError struct{}

func (transactionEndedError) Error() string {
	return "idempotency: the function ended the transaction itself, by COMMIT or ROLLBACK sent as SQL, so its result is not recorded: look at its writes. If they were committed, free the key with Store.Delete only if the operation is to run again"
}

func (transactionEndedError) Is(target error) bool { return target == ErrOutcomeUnknown }
