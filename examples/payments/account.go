package main

import (
	"context"
	"net/http"

	"github.com/jackc/pgx/v5"
)

// A statement is an account with its latest charges.
type statement struct {
	Account string   `json:"account"`
	Opening Money    `json:"opening"`
	Balance Money    `json:"balance"`
	Charges []charge `json:"charges"` // at most 100, the latest first
}

// getAccount reads the account of the API key.
func (a *api) getAccount(w http.ResponseWriter, r *http.Request) {
	s, err := a.readAccount(r.Context(), account(r.Context()))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	respond(w, http.StatusOK, s)
}

// readAccount reads balance and charges of one moment: two statements of one
// READ COMMITTED transaction would be of two.
func (a *api) readAccount(ctx context.Context, id string) (s statement, err error) {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, a.pool, snapshot, func(tx pgx.Tx) error {
		const balance = `select id, opening, balance from accounts where id = $1`
		if err := tx.QueryRow(ctx, balance, id).Scan(&s.Account, &s.Opening, &s.Balance); err != nil {
			return err
		}
		const charges = `select id, reference, amount, created_at from charges where account = $1 order by id desc limit 100`
		rows, _ := tx.Query(ctx, charges, id) // CollectRows returns its error
		s.Charges, err = pgx.CollectRows(rows, pgx.RowToStructByPos[charge])
		return err
	})
	return s, err
}
