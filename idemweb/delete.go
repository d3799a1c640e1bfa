package idemweb

import (
	"context"
	"errors"
	"net/http"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/inspect"
)

// deleteKey asks first, on a page of its own, and deletes the version that was shown there.
func deleteKey(r *request) (answer, error) {
	if !r.mayDelete(r.Request) {
		return failure(http.StatusForbidden, "You may not delete records", "Nothing was done. Whoever runs this page decides who may: Config.Delete, or the flag -delete of the command."), nil
	}
	scope, id, ok := readHandle(r.form.Get("key"))
	if problem := problemOf(scope, id); !ok || scope == "" || id == "" || problem != "" {
		return failure(http.StatusBadRequest, "The form cannot be read", "Nothing was done. Find the key again."), nil
	}
	if r.form.Get("confirmed") == "yes" {
		return r.deleteSeen(inspect.Seen(scope, id, r.form.Get("seen")))
	}
	c, err := r.findOne(scope, id)
	return answer{template: "delete", title: "Delete this record?", data: c}, err
}

// A deletion is what became of it.
type deletion struct {
	inspect.Record
	Deleted bool
	Text    string
}

func (r *request) deleteSeen(rec inspect.Record) (answer, error) {
	err := r.within(func(ctx context.Context) error {
		ctx = r.table.Deleting(ctx, patience, rec, idempotency.ErrInProgress)
		return r.store.Delete(ctx, idempotency.Key{Scope: rec.Scope, ID: rec.ID})
	})
	d := deletion{Record: rec, Deleted: err == nil}
	refused := func(status int, text string) (answer, error) {
		d.Text = text
		return answer{template: "deleted", title: "Nothing was deleted", status: status, data: d}, nil
	}
	switch {
	case err == nil:
		d.Text = "The next call with this key runs again. What the deleted call has written stays."
		return answer{template: "deleted", title: "Deleted", data: d}, nil
	case errors.Is(err, inspect.ErrOther):
		return refused(http.StatusConflict, "Another call with this key has taken effect since the record was shown, so that this is another record. Look at it before you decide.")
	case errors.Is(err, idempotency.ErrInProgress):
		return refused(http.StatusConflict, "A call with this key is in flight. Look at it, and ask again when it has ended.")
	case errors.Is(err, idempotency.ErrUnfinished):
		return refused(http.StatusConflict, "The key belongs to a procedure that has begun and not ended. A retry goes on with it; the command “idempotency delete -unfinished” gives it up.")
	case errors.Is(err, idempotency.ErrNotFound):
		return refused(http.StatusNotFound, "There is no record of this key any more: somebody has deleted it, or it had expired and was purged.")
	}
	return answer{}, err
}
