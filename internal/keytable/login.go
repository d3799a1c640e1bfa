package keytable

import (
	"context"
	"regexp"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// givenSQL names the role that has logged in, where the session has another one that who
// connects has not chosen: a setting of the database, or of the role that has logged in, gives
// it. Whoever may change such a setting can choose the role, and a function of it that a
// table runs can reset it: so the table has to be trusted by the login, too. The settings
// themselves say nothing: they can have been changed since. $3 says that who connects has
// chosen.
const givenSQL = `
case when session_user <> current_user and not $3::bool then session_user::text else '' end`

// chooses reports whether the connection string of q, or the program in its place, names a
// role. SET ROLE by a hook of the pool is no choice that can be seen here.
func chooses(q Querier) bool {
	var cfg *pgx.ConnConfig
	switch q := q.(type) {
	case interface{ Config() *pgxpool.Config }:
		cfg = q.Config().ConnConfig
	case interface{ Config() *pgx.ConnConfig }:
		cfg = q.Config()
	case interface{ Conn() *pgx.Conn }:
		cfg = q.Conn().Config()
	default:
		return false
	}
	_, named := cfg.RuntimeParams["role"]
	return named || roleOption.MatchString(cfg.RuntimeParams["options"])
}

// roleOption matches -c role=name, and --role=name (chapter 34.1.2 of the manual, options).
var roleOption = regexp.MustCompile(`(^|\s)(-c\s*|--)role=`)

// describeToLogin adds to t those who are strangers to the role that has logged in.
func (t *Table) describeToLogin(ctx context.Context, q Querier, login string, args []any) error {
	tx, err := q.Begin(ctx) // or a savepoint: after it the role is the same as before
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, "set local role none", pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	var seen Table
	if _, err := seen.read(ctx, tx, args); err != nil {
		return err
	}
	for _, s := range seen.Strangers {
		s.Login = login
		t.Strangers = append(t.Strangers, s)
	}
	return tx.Rollback(ctx)
}
