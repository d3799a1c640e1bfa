package peers

import (
	"context"
	"crypto/sha256"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pipelined is the name of the same pattern at its best.
const Pipelined = "hand-written pipelined"

func init() {
	register(Peer{
		Name:    Pipelined,
		About:   "The same by hand at its best: BEGIN, insert and read in one batch, the business write, update and COMMIT in one batch. What a lost answer to COMMIT means is left to the caller.",
		Prepare: prepareHandWritten,
		Open:    openPipelined,
	})
}

type pipelined struct{ pool *pgxpool.Pool }

func openPipelined(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	return pipelined{pool}, err
}

func (h pipelined) Close() { h.pool.Close() }

func (h pipelined) Do(ctx context.Context, call *Call) (string, error) {
	conn, err := h.pool.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Release()
	tx, answer, claimed, err := h.begin(ctx, conn, call)
	if err == nil && claimed {
		if answer, err = call.Write(ctx, tx); err == nil {
			call.Written(ctx)
			return answer, h.commit(ctx, conn, call, answer)
		}
	}
	return answer, errors.Join(err, tx.Rollback(ctx))
}

// begin claims the key, or reads the answer that is there.
func (h pipelined) begin(ctx context.Context, conn *pgxpool.Conn, call *Call) (tx pgx.Tx, answer string, claimed bool, err error) {
	var batch pgx.Batch
	batch.BeginTx(pgx.TxOptions{})
	batch.Queue(handClaimSQL, call.ID, call.Scope, fingerprint(call))
	batch.Queue(handReadSQL, call.ID, call.Scope)
	results := conn.SendBatch(ctx, &batch)
	defer func() { err = errors.Join(err, results.Close()) }()
	tx = results.Tx()
	if _, err = results.Exec(); err != nil {
		return tx, "", false, err
	}
	tag, err := results.Exec()
	if err != nil || tag.RowsAffected() == 1 {
		return tx, "", err == nil, err
	}
	answer, err = handAnswer(call, results.QueryRow())
	return tx, answer, false, err
}

func (h pipelined) commit(ctx context.Context, conn *pgxpool.Conn, call *Call, answer string) error {
	var batch pgx.Batch
	batch.Queue(handRecordSQL, call.ID, call.Scope, []byte(answer))
	batch.Queue("commit")
	return conn.SendBatch(ctx, &batch).Close()
}

func fingerprint(call *Call) []byte {
	sum := sha256.Sum256(call.Body)
	return sum[:]
}
