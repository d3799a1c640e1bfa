package peers

import (
	"context"
	"database/sql"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
)

// IdemSQL is the name of this package under a function of database/sql.
const IdemSQL = "idemsql"

func init() {
	register(Peer{
		Name:    IdemSQL,
		About:   "This package as above, with a function that takes a *sql.Tx: idemsql.Func.",
		Prepare: prepareOurs,
		Open:    openIdemSQL,
	})
}

type idemSQL struct {
	pool  *pgxpool.Pool
	store *idempotency.Store
}

func openIdemSQL(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, err
	}
	return idemSQL{pool, idempotency.New(pool)}, nil
}

func (o idemSQL) Close() { o.pool.Close() }

func (o idemSQL) Do(ctx context.Context, call *Call) (answer string, err error) {
	answer, _, err = idempotency.Do(ctx, o.store, call.key(), idemsql.Func(func(ctx context.Context, tx *sql.Tx) (string, error) {
		var id int64
		if err := tx.QueryRowContext(ctx, BusinessSQL, call.ID, call.Amount).Scan(&id); err != nil {
			return "", err
		}
		call.Written(ctx)
		return call.Answer(id), nil
	}))
	return answer, inProgress(err)
}
