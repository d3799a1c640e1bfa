package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/migrations"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
)

// newHandler makes the tables and the service. GORM and the Store share the pool.
func newHandler(ctx context.Context, pool *pgxpool.Pool) (http.Handler, error) {
	if err := migrations.Up(ctx, pool, ""); err != nil {
		return nil, err
	}
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: stdlib.OpenDBFromPool(pool)}), &gorm.Config{PrepareStmt: true})
	if err != nil {
		return nil, err
	}
	if err := db.WithContext(ctx).AutoMigrate(&Item{}, &Order{}); err != nil {
		return nil, err
	}
	if err := db.WithContext(ctx).Where(Item{Name: "tea"}).Attrs(Item{Stock: 100}).FirstOrCreate(&Item{}).Error; err != nil {
		return nil, err
	}
	idem, err := idemhttp.New(idempotency.New(pool), idemhttp.Config{Scope: customer})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /orders", idem.Atomic((&api{db}).postOrder))
	return mux, nil
}

// customer says whose key it is. A real service takes it from its authentication.
func customer(r *http.Request) (string, error) {
	name := r.Header.Get("Customer")
	if name == "" {
		return "", errors.New("there is no Customer header")
	}
	return name, nil
}

type api struct{ db *gorm.DB }

// postOrder writes in tx alone. Its response is recorded in the commit of its
// writes; with a 500 everything is rolled back, and the same key can be sent again.
func (a *api) postOrder(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
	var order Order
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil || order.Quantity <= 0 {
		http.Error(w, `the body has to be like {"item": "tea", "quantity": 2}`, http.StatusBadRequest)
		return
	}
	order.ID, order.Customer = 0, r.Header.Get("Customer")
	soldOut, err := idemsql.Run(r.Context(), tx, func(tx *sql.Tx) (bool, error) {
		return place(within(r.Context(), a.db, tx), &order)
	})
	switch {
	case err != nil:
		log.Print(err)
		http.Error(w, "the order was not executed: send it again, with the same key", http.StatusInternalServerError)
	case soldOut:
		http.Error(w, "sold out", http.StatusGone) // final, and so recorded; a 409 would not be
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(order) // fails when the client has gone
	}
}

// within is db in the transaction tx. See docs/sql.md.
func within(ctx context.Context, db *gorm.DB, tx *sql.Tx) *gorm.DB {
	session := db.Session(&gorm.Session{NewDB: true, Context: ctx})
	session.Statement.ConnPool = tx
	return session
}
