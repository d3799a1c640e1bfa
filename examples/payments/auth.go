package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

type accountKey struct{}

// account is whose request it is.
func account(ctx context.Context) string {
	id, _ := ctx.Value(accountKey{}).(string)
	return id
}

// accountOf is the scope of idempotency keys: two customers who happen to send
// the same key never meet, and nobody can be given another's response.
func accountOf(r *http.Request) (string, error) { return account(r.Context()), nil }

// authenticated lets requests with an API key through, as those of its account.
// Take it for an example: yours may verify a signed token, or ask another
// service. What matters is that the account does not come from the request's
// body or from anything else that a client can choose.
func (a *api) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			key = ""
		}
		id, err := a.accountWithKey(r.Context(), strings.TrimSpace(key))
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			w.Header().Set("WWW-Authenticate", `Bearer realm="payments"`)
			refuse(w, unauthenticated, "Send an API key: Authorization: Bearer ...")
		case err != nil:
			a.fail(w, r, err)
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), accountKey{}, id)))
		}
	})
}

// accountWithKey looks for the key's hash, so that the table gives no keys away.
// API keys are long and random; a password, which can be guessed, would need a
// slow hash.
func (a *api) accountWithKey(ctx context.Context, key string) (id string, err error) {
	hash := sha256.Sum256([]byte(key))
	err = a.pool.QueryRow(ctx, `select account from api_keys where hash = $1`, hash[:]).Scan(&id)
	return id, err
}

// openExamples opens two accounts to try the service with. Their API keys can be
// guessed: for a database that holds nothing else.
func openExamples(ctx context.Context, pool *pgxpool.Pool) error {
	const sql = `
with opened as (
	insert into accounts (id, opening, balance) values ('alice', 10000, 10000), ('bob', 1000, 1000)
	on conflict do nothing
	returning id
)
insert into api_keys (hash, account)
select sha256(convert_to(id || '-secret', 'UTF8')), id from opened`
	_, err := pool.Exec(ctx, sql)
	return err
}
