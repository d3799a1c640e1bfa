package keytable

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// givenSQL names the role that has logged in, where a setting of the database or of that
// role has given the session another one. Whoever may change such a setting can choose the
// role, and a function of it that a table runs can reset it: so the table has to be
// trusted by the login, too. A role that the connection string names is the choice of
// whoever connects.
const givenSQL = `
select coalesce((
	select l.rolname::text
	from pg_roles l
	where l.rolname = session_user and session_user <> current_user and exists (
		select from pg_db_role_setting s cross join pg_catalog.unnest(s.setconfig) o (option)
		where s.setdatabase in (0::oid, (select oid from pg_database where datname = current_database()))
			and s.setrole in (0::oid, l.oid) and o.option like 'role=%'::text)), '')`

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
