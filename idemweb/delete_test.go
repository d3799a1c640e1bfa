package idemweb_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func records(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), "select count(*) from idempotency_keys").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNobodyDeletesUnlessTheConfigAllowsIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	admin := func(r *http.Request) bool { return r.Header.Get("User") == "admin" }
	for _, cfg := range []idemweb.Config{{}, {Delete: admin}} {
		b := open(t, pool, cfg)
		b.find("s", "i").wantNot(t, "Delete")
		key := idemweb.HandleOf("s", "i")
		b.post("/delete", "key", key).want(t, 403, "Nothing was done")
		b.post("/delete", "key", key, "confirmed", "yes").want(t, 403, "Nothing was done")
	}
	b := open(t, pool, idemweb.Config{Delete: admin})
	form := b.form("/key", "scope", "s", "id", "i")
	form.Header.Set("User", "admin")
	b.send(form).want(t, 200, "Delete…")
	if records(t, pool) != 1 {
		t.Error("the record was deleted")
	}
}

func TestRecordIsDeletedAfterAQuestionAndTheCallRunsAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always})
	for _, id := range []string{"done", "expired", "abandoned"} {
		execute(t, pool, "s", id, 1)
	}
	expire(t, pool, "expired")
	do(t, pool, "update idempotency_keys set completed_at = null, expires_at = null, result = null where id = 'abandoned'")
	for _, id := range []string{"done", "expired", "abandoned"} {
		asked := b.press(b.find("s", id), "Delete…")
		asked.want(t, 200, "Delete this record?", "The next call with this key runs again.", "the operation takes effect twice")
		if n := records(t, pool); n != 3 {
			t.Fatalf("%s: %d records: the question has deleted it", id, n)
		}
		b.press(asked, "Keep it").want(t, 200, "Key "+id)
		b.press(asked, "Delete the record").want(t, 200, "Deleted", "runs again")
		b.find("s", id).want(t, 200, "No record")
		b.press(asked, "Delete the record").want(t, 404, "Nothing was deleted", "no record of this key any more")
		execute(t, pool, "s", id, 2)
	}
}

func TestDeletionIsOfTheRecordThatWasShown(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always})
	execute(t, pool, "s", "i", 1)
	asked := b.press(b.find("s", "i"), "Delete…")
	if err := idempotency.New(pool).Delete(t.Context(), idempotency.Key{Scope: "s", ID: "i"}); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, "s", "i", 2) // another one
	refused := b.press(asked, "Delete the record")
	refused.want(t, 409, "Nothing was deleted", "Another call with this key has taken effect since")
	if !strings.Contains(refused.body, `<p class="notice bad" role="status">`) {
		t.Errorf("it looks like a deletion: %s", refused.body)
	}
	do(t, pool, "update idempotency_keys set completed_at = completed_at + interval '1 microsecond'")
	b.press(asked, "Delete the record").want(t, 409, "Nothing was deleted")
	b.post("/delete", "key", idemweb.HandleOf("s", "i"), "confirmed", "yes").want(t, 409, "Nothing was deleted") // none was shown
	if records(t, pool) != 1 {
		t.Error("the other record was deleted")
	}
	b.press(b.press(b.find("s", "i"), "Delete…"), "Delete the record").want(t, 200, "Deleted")
}

func TestKeyInFlightOrUnfinishedIsNotDeleted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always})
	stop(t, pool, "s", "ride")
	execute(t, pool, "s", "held", 1)
	expire(t, pool, "held")
	asked := b.press(b.find("s", "held"), "Delete…")
	hold(t, pool, "s", "held")
	b.find("s", "held").wantNot(t, "Delete…")
	b.find("s", "ride").wantNot(t, "Delete…")
	b.find("s", "none").wantNot(t, "Delete…")
	b.press(asked, "Delete the record").want(t, 409, "Nothing was deleted", "in flight")
	b.post("/delete", "key", idemweb.HandleOf("s", "held")).want(t, 200, "This cannot be deleted here", "Ask again when the call has ended")
	b.post("/delete", "key", idemweb.HandleOf("s", "ride")).want(t, 200, "This cannot be deleted here", "idempotency delete -unfinished")
	b.post("/delete", "key", idemweb.HandleOf("s", "none")).want(t, 200, "This cannot be deleted here", "There is nothing to delete")
	var seen string
	if err := pool.QueryRow(t.Context(), `select to_char(purge_after at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') from idempotency_keys where id = 'ride'`).Scan(&seen); err != nil {
		t.Fatal(err)
	}
	b.post("/delete", "key", idemweb.HandleOf("s", "ride"), "confirmed", "yes", "seen", strings.TrimRight(seen, "0")+"Z ").want(t, 409, "a procedure that has begun and not ended")
	if n := records(t, pool); n != 2 {
		t.Errorf("%d records", n)
	}
}

func TestFormThatIsNotOursDeletesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always})
	execute(t, pool, "s", "iii", 1)
	for _, key := range []string{"", ".", "czE", idemweb.HandleOf("s", "iii") + "!", idemweb.HandleOf("", "i"), idemweb.HandleOf("s", ""), idemweb.HandleOf("s", strings.Repeat("x", 256))} {
		b.post("/delete", "key", key, "confirmed", "yes").want(t, 400, "Nothing was done")
	}
	if records(t, pool) != 1 {
		t.Error("the record was deleted")
	}
}

// Somebody could have made the link.
func TestFieldsOfAFormAreNotTakenFromTheURL(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always, Results: always})
	execute(t, pool, "s", "i", "secret")
	key := idemweb.HandleOf("s", "i")
	b.post("/delete?confirmed=yes", "key", key).want(t, 200, "Delete this record?")
	b.post("/key?show=result", "key", key).wantNot(t, "secret")
	b.post("/key?key="+key).want(t, 200, "Find a key")
}
