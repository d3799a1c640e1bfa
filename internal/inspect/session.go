package inspect

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/keytable"
)

// Prepare makes a new session one in which the keys are what they are, and refuses one in
// which anything could run.
func Prepare(ctx context.Context, conn *pgx.Conn) error {
	if err := unshadowed(ctx, conn); err != nil {
		return err
	}
	return legible(ctx, conn, "set")
}

// legible sets client_encoding where it is neither what pgx sends nor what the database
// keeps: one key would be shown, or deleted, for another. A Store refuses such keys.
func legible(ctx context.Context, conn *pgx.Conn, set string) error {
	server, client := conn.PgConn().ParameterStatus("server_encoding"), conn.PgConn().ParameterStatus("client_encoding")
	if client == server || client == "UTF8" || client == "SQL_ASCII" || server == "SQL_ASCII" {
		return nil
	}
	_, err := conn.Exec(ctx, set+" client_encoding to 'UTF8'", pgx.QueryExecModeExec)
	return err
}

// unshadowed refuses a session in which any statement could run what somebody has planted.
func unshadowed(ctx context.Context, q keytable.Querier) error {
	path, err := keytable.Shadowing(ctx, q)
	if err == nil && path != "" {
		err = Untrusted(fmt.Sprintf("the search_path, %s, names pg_catalog behind another schema, whose operators and functions would run instead of PostgreSQL's: %s", path, keytable.ShadowingRemedy))
	}
	return err
}
