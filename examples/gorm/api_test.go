package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func serve(t *testing.T) (*pgxpool.Pool, *httptest.Server) {
	t.Helper()
	pool := pgtest.Empty(t)
	handler, err := newHandler(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return pool, server
}

func order(t *testing.T, server *httptest.Server, key, body string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/orders", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Idempotency-Key", `"`+key+`"`)
	r.Header.Set("Customer", "alice")
	response, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func stock(t *testing.T, pool *pgxpool.Pool) (left, orders int) {
	t.Helper()
	err := pool.QueryRow(t.Context(), "select (select stock from items), (select count(*) from orders)").Scan(&left, &orders)
	if err != nil {
		t.Fatal(err)
	}
	return left, orders
}

func TestOrderIsExecutedOnceAndItsRetriesGetItsResponse(t *testing.T) {
	t.Parallel()
	pool, server := serve(t)
	status, first := order(t, server, "order-1", `{"item": "tea", "quantity": 2}`)
	if status != http.StatusCreated {
		t.Fatal(status, first)
	}
	for range 2 {
		if status, again := order(t, server, "order-1", `{"item": "tea", "quantity": 2}`); status != http.StatusCreated || again != first {
			t.Errorf("%d %s, want %s", status, again, first)
		}
	}
	if left, orders := stock(t, pool); left != 98 || orders != 1 {
		t.Errorf("%d left, %d orders", left, orders)
	}
}

func TestRefusalIsAnAnswerThatRetriesGetToo(t *testing.T) {
	t.Parallel()
	pool, server := serve(t)
	for range 2 {
		if status, text := order(t, server, "order-1", `{"item": "tea", "quantity": 101}`); status != http.StatusGone {
			t.Error(status, text)
		}
		if _, err := pool.Exec(t.Context(), "update items set stock = 1000"); err != nil {
			t.Fatal(err)
		}
	}
	if _, orders := stock(t, pool); orders != 0 {
		t.Errorf("%d orders", orders)
	}
}

// The second statement fails, so the stock that the first one took is back.
func TestFailedOrderLeavesNothingAndCanBeSentAgain(t *testing.T) {
	t.Parallel()
	pool, server := serve(t)
	for _, sql := range []string{"alter table orders add constraint broken check (false)", "alter table orders drop constraint broken"} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		status, text := order(t, server, "order-1", `{"item": "tea", "quantity": 2}`)
		left, orders := stock(t, pool)
		if got, want := fmt.Sprint(status, left, orders), "500 100 0"; strings.Contains(sql, "add") && got != want {
			t.Errorf("%s, want %s: %s", got, want, text)
		}
		if got, want := fmt.Sprint(status, left, orders), "201 98 1"; strings.Contains(sql, "drop") && got != want {
			t.Errorf("%s, want %s: %s", got, want, text)
		}
	}
}

func TestWrongOrdersAreRefusedByName(t *testing.T) {
	t.Parallel()
	_, server := serve(t)
	for i, body := range []string{"", "{", `{"item": "tea"}`, `{"item": "tea", "quantity": -1}`} {
		if status, text := order(t, server, fmt.Sprint(i), body); status != http.StatusBadRequest || !strings.Contains(text, "quantity") {
			t.Errorf("%q: %d %s", body, status, text)
		}
	}
}

func TestStormHasOneEffectForEachKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	idemtest.Storm(t, pool, 20, idemtest.Program{
		Start: func(pool *pgxpool.Pool, _ *idempotency.Store) idemtest.Call {
			handler, err := newHandler(context.Background(), pool)
			if err != nil {
				t.Fatal(err)
			}
			return idemtest.HTTP(handler, func(id string) *http.Request {
				r := httptest.NewRequest("POST", "/orders", strings.NewReader(`{"item": "tea", "quantity": 1}`))
				r.Header.Set("Idempotency-Key", `"`+id+`"`)
				r.Header.Set("Customer", id)
				return r
			})
		},
		Effects: func(ctx context.Context, pool *pgxpool.Pool, id string) (n int, err error) {
			err = pool.QueryRow(ctx, "select count(*) from orders where customer = $1", id).Scan(&n)
			return n, err
		},
	})
}
