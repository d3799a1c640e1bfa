package idemweb

import (
	"context"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/inspect"
)

// scopePage is how many keys of a scope are shown at a time.
const scopePage = 50

// A listing is a page of a scope's keys.
type listing struct {
	Scope   string
	Handle  string // of the scope
	Problem string
	Asked   bool
	First   bool
	Records []inspect.Record
	Reached *inspect.Record // the key at which the search was given up for this page
	Next    string
	Rows    int64 // how many were read until there
}

func scopeKeys(r *request) (answer, error) {
	l := listing{Scope: r.form.Get("scope"), Rows: inspect.WalkRows}
	if r.form.Has("of") {
		scope, _, ok := readHandle(r.form.Get("of"))
		if !ok {
			return failure(http.StatusBadRequest, "The form cannot be read", "It has no scope. Go back, and reload the list."), nil
		}
		l.Scope = scope
	}
	a := answer{template: "scope", title: "A scope’s keys"}
	after, err := inspect.ReadCursor(r.form.Get("after"))
	switch {
	case err != nil:
		return failure(http.StatusBadRequest, "The form cannot be read", "It has no place to go on from. Begin again with the scope."), nil
	case l.Scope == "":
		a.data = l
		return a, nil
	}
	if l.Problem = problemOf(l.Scope); l.Problem != "" {
		a.status, a.data = http.StatusBadRequest, l
		return a, nil
	}
	l.Asked, l.First, l.Handle = true, after == inspect.Cursor{}, handleOf(l.Scope, "")
	err = r.look(func(ctx context.Context, tx pgx.Tx, t *inspect.Table) error {
		w, err := t.WalkScope(ctx, tx, l.Scope, after, scopePage)
		if l.Records, l.Reached = w.Records, w.Reached; w.Next != nil {
			l.Next = w.Next.String()
		}
		return err
	})
	a.data = l
	return a, err
}
