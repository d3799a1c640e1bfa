package peers

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Bare is the name of the bare business transaction, with which the others are
// compared.
const Bare = "bare transaction"

func init() {
	register(Peer{
		Name:    Bare,
		About:   "The business transaction without idempotency: pgx.BeginFunc with one INSERT. Its replay is a select of the answer by primary key.",
		Prepare: prepareBare,
		Open:    openBare,
	})
}

func prepareBare(ctx context.Context, env Env) error {
	return execOnce(ctx, env, `create table bare_answers (id text collate "C" primary key, answer text not null)`)
}

// execOnce executes statements on a connection of their own.
func execOnce(ctx context.Context, env Env, statements ...string) error {
	conn, err := pgx.Connect(ctx, env.DSN)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

type bare struct{ pool *pgxpool.Pool }

func openBare(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	return bare{pool}, err
}

func (b bare) Close() { b.pool.Close() }

func (b bare) Do(ctx context.Context, call *Call) (answer string, err error) {
	err = pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		answer, err = call.Write(ctx, tx)
		call.Written(ctx)
		return err
	})
	return answer, err
}

func (b bare) Seed(ctx context.Context, call *Call, answer string) error {
	_, err := b.pool.Exec(ctx, "insert into bare_answers (id, answer) values ($1, $2)", call.ID, answer)
	return err
}

func (b bare) Replay(ctx context.Context, call *Call) (answer string, err error) {
	err = b.pool.QueryRow(ctx, "select answer from bare_answers where id = $1", call.ID).Scan(&answer)
	return answer, err
}
