package idemweb_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemweb"
)

// login is yours: it knows who sends a request, and what they may do.
type login struct{}

func (login) required(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, _, ok := r.BasicAuth(); !ok || name == "" {
			http.Error(w, "log in first", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (login) isAdmin(r *http.Request) bool {
	name, _, _ := r.BasicAuth()
	return name == "admin"
}

// The page, behind a login: support looks, an administrator may also see results and delete.
func Example() {
	var users login // your own
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	page, err := idemweb.New(idempotency.New(pool), idemweb.Config{
		Delete:  users.isAdmin,
		Results: users.isAdmin,
		Trace:   "https://jaeger.example.com/trace/{trace}",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/idempotency/", users.required(page))

	for _, name := range []string{"", "support"} {
		r := httptest.NewRequest(http.MethodGet, "/idempotency/key", nil)
		if name != "" {
			r.SetBasicAuth(name, "password")
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		fmt.Println(w.Code)
	}
	// Output:
	// 401
	// 200
}
