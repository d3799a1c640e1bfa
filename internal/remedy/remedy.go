// Package remedy says what to do about an error of PostgreSQL, where it is about the
// table of package idempotency or about a statement on it.
//
// An SQLSTATE alone does not tell that. A trigger, a policy, a hook of the pool or the
// caller's own statement can raise each of them, and the remedy would be a wrong one.
// Texts do not tell it either, since PostgreSQL translates them; but the names in them,
// the position in the statement and the function of the server that raised the error
// are the same in every language.
package remedy

import (
	"errors"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/keytable"
)

// SQLSTATEs, from appendix A of the PostgreSQL manual.
const (
	UndefinedTable   = "42P01"
	InvalidSchema    = "3F000"
	UndefinedColumn  = "42703"
	NoSuchConstraint = "42P10"
	ReadOnly         = "25006"
	NotSupported     = "0A000"
	NoPrivilege      = "42501"
	InvalidParameter = "22023"
	Untranslatable   = "22P05"
	NotInRepertoire  = "22021"
)

// ToThePrimary is what to do about a server that is a standby.
const ToThePrimary = "connect to the primary, for example with target_session_attrs=read-write"

// MissingTable is what to do where the table is not there.
const MissingTable = `the table "idempotency_keys" is missing: run migrations.Up, or the command "idempotency migrate up", on this database and schema (Config.Schema or -schema, or else the search_path)`

// An Error is an error of PostgreSQL with what to do about it.
type Error struct {
	Remedy string

	// Lasting: sending the statement again fails until somebody changes the table or
	// its grants.
	Lasting bool

	err error
}

func (e *Error) Error() string { return e.Remedy + ": " + e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Of adds a remedy to err where it knows one; else it returns err. Schema is the one of
// the table, where it is known.
func Of(err error, schema string) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || errors.As(err, new(*Error)) {
		return err
	}
	text, lasting := of(pgErr, schema)
	if text == "" {
		return err
	}
	return &Error{text, lasting, err}
}

func of(e *pgconn.PgError, schema string) (text string, lasting bool) {
	ours := !nested(e)
	// The position is one in the statement that was sent: a statement inside of a
	// function has another one.
	switch e.Code {
	case UndefinedTable, InvalidSchema:
		switch {
		case e.Position > 0 && strings.Contains(e.Message, keytable.Operations):
			return `the table "idempotency_operations" is missing, which procedures need: run migrations.Up of this release, or the command "idempotency migrate up"`, true
		case e.Position > 0 && names(e, schema):
			return MissingTable, true
		}
	case UndefinedColumn:
		if e.Position > 0 {
			return otherVersion, true
		}
	case NoSuchConstraint:
		if ours {
			return otherVersion, true
		}
	case ReadOnly:
		if ours {
			return "the server is a standby, or the session or the transaction is read-only: " + ToThePrimary + ", or turn default_transaction_read_only off", false
		}
	case NotSupported:
		switch {
		case !ours:
		case e.Routine == "RewriteQuery":
			return `a rule on "idempotency_keys" for insert or update keeps calls from writing: drop it`, false
		case onStandby(e):
			return "a standby cannot begin a serializable transaction: " + ToThePrimary, false
		}
	case NoPrivilege:
		switch {
		case !ours:
		case e.Routine == "ExecWithCheckOptions":
			return `a policy (row-level security) on "idempotency_keys" refuses this role`, false
		case isDenied(e) && strings.Contains(e.Message, keytable.Operations):
			return `the role needs select, insert, update and delete on "idempotency_operations" for procedures (one that only looks: select)`, true
		case isDenied(e) && names(e, schema):
			return `the role needs select, insert, update and delete on "idempotency_keys", and usage of its schema (one that only looks: select)`, true
		}
	}
	return "", false
}

// onStandby: a transaction of the mode that was asked for cannot begin there.
func onStandby(e *pgconn.PgError) bool {
	return e.Routine == "GetSerializableTransactionSnapshot" || strings.HasPrefix(e.Routine, "call_") && strings.HasSuffix(e.Routine, "_check_hook")
}

// CannotWrite reports whether err says that the server, or the session, is read-only. A
// function can make its transaction read-only, too, but not before its first statement.
func CannotWrite(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && !nested(e) && (e.Code == ReadOnly && e.Routine == "PreventCommandIfReadOnly" || e.Code == NotSupported && onStandby(e))
}

const otherVersion = `the table "idempotency_keys" is not of this version: run migrations.Up, or the command "idempotency migrate up"`

// Missing reports whether err says that a relation of the statement itself is not there.
func Missing(err error, relation string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == UndefinedTable || e.Code == InvalidSchema) && e.Position > 0 && strings.Contains(e.Message, relation)
}

// Denied reports whether the role lacks a grant, or is not the owner, of what the
// statement itself is about.
func Denied(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && isDenied(e) && !nested(e)
}

func isDenied(e *pgconn.PgError) bool {
	return e.Code == NoPrivilege && e.Routine == "aclcheck_error"
}

// Raised reports whether a function of the server has raised err for the statement
// itself.
func Raised(err error, code, routine string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == code && e.Routine == routine && !nested(e)
}

// RefusesSetting reports whether err says that the server refuses a value for the
// setting.
func RefusesSetting(err error, setting string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == InvalidParameter && strings.Contains(e.Message, `"`+setting+`"`)
}

// Unholdable reports whether a text of the statement itself has a character that the
// encoding of the database, or of the client, does not have.
func Unholdable(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == Untranslatable || e.Code == NotInRepertoire) && !nested(e)
}

// names reports whether the error names the table or its schema.
func names(e *pgconn.PgError, schema string) bool {
	return strings.Contains(e.Message, keytable.Name) || schema != "" && strings.Contains(e.Message, schema)
}

// nested reports whether the error comes from a statement or expression inside of a
// function, such as a trigger's. For the statement itself the context is empty, or
// PostgreSQL has added its parameters ($1): the one that it could not read, or all of
// them, with log_parameter_max_length_on_error.
func nested(e *pgconn.PgError) bool {
	first, _, _ := strings.Cut(e.Where, "\n")
	return e.InternalQuery != "" || first != "" && !parameters.MatchString(first)
}

var parameters = regexp.MustCompile(`^[^"']*( "[^"]*" )?[^"']*\$\d+( =|$)`)
