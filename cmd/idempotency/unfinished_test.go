package main_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func rideWith(charge func(ctx context.Context, key string) (string, error)) idempotency.Procedure[int, string] {
	return idempotency.Procedure[int, string]{Name: "ride", Run: func(ctx context.Context, op *idempotency.Op, amount int) (string, error) {
		if _, err := idempotency.Step(ctx, op, "create", func(context.Context, pgx.Tx) (int, error) { return 7, nil }); err != nil {
			return "", err
		}
		return idempotency.Call(ctx, op, "charge", charge)
	}}
}

// rideThatStops is a procedure whose provider does not answer.
func rideThatStops(t *testing.T, pool *pgxpool.Pool, scope, id string) {
	t.Helper()
	store := idempotency.New(pool)
	noAnswer := errors.New("no answer from \x1b the provider")
	ride := rideWith(func(context.Context, string) (string, error) { return "", noAnswer })
	if _, _, err := ride.Do(t.Context(), store, idempotency.Key{Scope: scope, ID: id}, 20); !errors.Is(err, noAnswer) {
		t.Fatal(err)
	}
	_, _ = store.Complete(t.Context(), 0, ride) // an attempt that fails as well
}

func TestUnfinishedOperationIsToldFromAnAbandonedKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "done", 1)
	rideThatStops(t, pool, "s", "ride")
	do(t, pool, "insert into idempotency_keys (id, scope, purge_after) values ('lost', 's', now())")

	run(t, on(pool), "get", "s", "ride").wantAll(t, 0, "unfinished: a retry, or Store.Complete", "procedure:", "ride", "done:", "step create", "begun:", "call charge: its outcome is not known", "attempts:", "1 of Store.Complete", `no answer from \x1b the provider`)
	op := objects(t, run(t, on(pool), "get", "s", "ride", "-json"))[0]["operation"].(map[string]any)
	if op["procedure"] != "ride" || op["begun"] != "call charge" || op["attempts"] != 1.0 || op["done"].([]any)[0] != "step create" || op["progressed_at"] == nil || op["due_at"] == nil {
		t.Errorf("%v", op)
	}
	run(t, on(pool), "get", "s", "lost").wantAll(t, 0, "abandoned: a function")
	for state, id := range map[string]string{"done": "done", "unfinished": "ride", "abandoned": "lost"} {
		for _, more := range []string{"", "-id " + id} {
			found := objects(t, run(t, on(pool), strings.Fields("list -json -state "+state+" "+more)...))
			if len(found) != 1 || found[0]["id"] != id || found[0]["state"] != state {
				t.Errorf("%s: %v", state, found)
			}
		}
	}
	run(t, on(pool), "find", "ride").wantAll(t, 0, "unfinished")
	run(t, on(pool), "stats").wantAll(t, 0, "1, 1 in a call whose outcome is not known, 1 that Store.Complete has tried in vain, the oldest has not progressed since", "list -state unfinished")
	s := objects(t, run(t, on(pool), "stats", "-json"))[0]
	if b := s["unfinished"].(map[string]any); b["operations"] != 1.0 || b["in_calls"] != 1.0 || b["failed"] != 1.0 || s["abandoned"] != 1.0 {
		t.Errorf("%v", s)
	}
	rideThatStops(t, pool, "another", "lost") // the same key
	run(t, on(pool), "get", "s", "lost").wantAll(t, 0, "abandoned: a function")
	run(t, on(pool), "list", "-scope", "s", "-id", "lost").wantAll(t, 0, "abandoned")
}

func TestReaderSeesHowFarAnOperationIsAndNotItsOutcomes(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	rideThatStops(t, pool, "s", "ride")
	who := stranger(t, pool)
	as := []string{"DATABASE_URL=" + with(pool, "role", who)}
	do(t, pool, "grant select (id, scope, completed_at, expires_at, purge_after, fingerprint, origin) on idempotency_keys to "+who)
	run(t, as, "get", "s", "ride").wantAll(t, 0, "abandoned")
	do(t, pool, "grant select (id, scope, number, started_at, progressed_at, due_at, attempts, name, labels) on idempotency_operations to "+who)
	r := run(t, as, "get", "s", "ride")
	r.wantAll(t, 0, "unfinished", "step create", "call charge: this role may not see whether it has ended (select on the column results)", "1 of Store.Complete")
	if strings.Contains(r.stdout, "no answer") {
		t.Errorf("%+v", r)
	}
	run(t, as, "stats").wantAll(t, 0, "1, 1 that Store.Complete has tried in vain")
	do(t, pool, "grant select (error, results) on idempotency_operations to "+who)
	run(t, as, "get", "s", "ride").wantAll(t, 0, "its outcome is not known", "no answer")
}

func TestTableOfOperationsOfAStrangerIsNotRead(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	who := stranger(t, pool)
	do(t, pool, "insert into idempotency_keys (id, scope, purge_after) values ('lost', 's', now())")
	do(t, pool, "alter table idempotency_operations owner to "+who)
	for _, args := range []string{"get s lost", "list", "stats"} {
		runOn(t, pool, args).wantLine(t, 1, "idempotency_operations", `belongs to role "`+who+`"`)
	}
	do(t, pool, "drop table idempotency_operations")
	for _, args := range []string{"get s lost", "list", "list -state abandoned", "stats"} {
		runOn(t, pool, args).wantAll(t, 0)
	}
}

// While a call runs, its transaction has read its operation, and written nothing.
func TestProcedureThatIsAtWorkIsInProgressWhereverItIs(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	store := idempotency.New(pool)
	inside, leave := make(chan struct{}), make(chan struct{})
	pause := func() { inside <- struct{}{}; <-leave }
	ride := idempotency.Procedure[int, int]{Name: "ride", Run: func(ctx context.Context, op *idempotency.Op, amount int) (int, error) {
		step := func(ctx context.Context, tx pgx.Tx) (int, error) { pause(); return 7, nil }
		if _, err := idempotency.Step(ctx, op, "create", step); err != nil {
			return 0, err
		}
		if _, err := idempotency.Call(ctx, op, "charge", func(context.Context, string) (int, error) { pause(); return 7, nil }); err != nil {
			return 0, err
		}
		return idempotency.Step(ctx, op, "confirm", step)
	}}
	ended := make(chan error, 1)
	go func() {
		_, _, err := ride.Do(context.Background(), store, idempotency.Key{Scope: "s", ID: "ride"}, 20)
		ended <- err
	}()
	for _, says := range []string{
		"nothing has taken effect yet", // the step of the claim
		"procedure ride has done: step create; it has begun: call charge: ask again",
		"procedure ride has done: step create, call charge: ask again",
	} {
		<-inside
		run(t, on(pool), "get", "s", "ride").wantLine(t, 4, "is in progress", says, "pg_terminate_backend")
		got := objects(t, run(t, on(pool), "get", "s", "ride", "-json"))[0]
		if got["state"] != "in progress" || len(got["holders"].([]any)) != 1 {
			t.Errorf("%v", got)
		}
		if strings.Contains(says, "ride") { // else there is no row
			r := run(t, on(pool), "find", "ride")
			r.wantAll(t, 4, "in progress")
			if !strings.Contains(r.stderr, "what its procedure has done stays done") {
				t.Error(r.stderr)
			}
		}
		if s := objects(t, run(t, on(pool), "stats", "-json"))[0]; len(s["holders"].([]any)) != 1 {
			t.Errorf("%s: stats has the holders %v", says, s["holders"])
		}
		leave <- struct{}{}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSettledCallIsNeverMadeAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	rideThatStops(t, pool, "s", "ride")
	run(t, on(pool), "settle", "s", "ride", "other", "1", "-yes").wantLine(t, 1, "does not wait for the outcome of call other")
	run(t, on(pool), "settle", "s", "none", "charge", "1", "-yes").wantLine(t, 3, "no procedure with key none of scope s has begun and not ended")
	inside, leave := make(chan struct{}), make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _, _ = rideWith(func(context.Context, string) (string, error) {
			close(inside)
			<-leave
			return "", errors.New("no answer")
		}).
			Do(context.Background(), idempotency.New(pool), idempotency.Key{Scope: "s", ID: "ride"}, 20)
	}()
	<-inside
	run(t, on(pool), "settle", "s", "ride", "charge", "1", "-yes").wantLine(t, 4, "key ride of scope s is in progress")
	run(t, on(pool), "delete", "s", "ride", "-unfinished", "-yes").wantLine(t, 4, "key ride of scope s is in progress")
	close(leave)
	<-ended
	run(t, on(pool), "settle", "s", "ride", "charge", `"ch_1"`, "-yes").want(t, 0, "settled\n", "")
	ride := rideWith(func(context.Context, string) (string, error) { return "", errors.New("made again") })
	got, _, err := ride.Do(t.Context(), idempotency.New(pool), idempotency.Key{Scope: "s", ID: "ride"}, 20)
	if got != "ch_1" || err != nil {
		t.Error(got, err)
	}
	run(t, on(pool), "settle", "s", "ride", "charge", "1", "-yes").wantLine(t, 3, "has begun and not ended")
}

func TestDeleteGivesUpAnUnfinishedOperationOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	rideThatStops(t, pool, "s", "ride")
	execute(t, pool, "s", "done", 1)
	for _, args := range []string{"delete s ride", "delete s ride -yes"} {
		run(t, on(pool), strings.Fields(args)...).wantLine(t, 1, "key ride of scope s belongs to a procedure that has begun and not ended", "-unfinished gives it up")
	}
	run(t, on(pool), "delete", "s", "done", "-unfinished", "-yes").wantLine(t, 3, "no procedure with key done of scope s")
	run(t, on(pool), "get", "s", "done").wantAll(t, 0, "done")
	for _, args := range []string{"delete s ride -unfinished", "settle s ride charge 1"} { // there is nobody to ask
		if r := run(t, on(pool), strings.Fields(args)...); r.exit != 2 || !strings.Contains(r.stderr, "add -yes") {
			t.Errorf("%s: %+v", args, r)
		}
	}
	run(t, on(pool), "delete", "s", "ride", "-unfinished", "-yes", "-json").want(t, 0, `{"scope":"s","id":"ride","deleted":true,"state":"deleted"}`+"\n", "")
	run(t, on(pool), "get", "s", "ride").wantLine(t, 3, "no record")
	do(t, pool, "drop table idempotency_operations")
	for _, args := range []string{"delete s done -unfinished -yes", "settle s done charge 1 -yes"} {
		run(t, on(pool), strings.Fields(args)...).wantLine(t, 3, "no procedure with key done of scope s")
	}
}

func TestOperationsOfAStrangerAreNotChanged(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	rideThatStops(t, pool, "s", "ride")
	do(t, pool, "alter table idempotency_operations owner to "+stranger(t, pool))
	for _, args := range []string{"settle s ride charge 1 -yes", "delete s ride -unfinished -yes"} {
		run(t, on(pool), strings.Fields(args)...).wantLine(t, 1, "idempotency_operations", "belongs to role")
	}
}

func TestSettleAsksAboutWhatItWillEnter(t *testing.T) {
	t.Parallel()
	cmd := command(t, []string{"DATABASE_URL=postgres://u@127.0.0.1:1/shop"}, "settle", "customer-7", "ride-1", "charge", `"ch_1"`)
	cmd.Stdin = strings.NewReader("yes\n") // a pipe
	finish(t, cmd).
		wantLine(t, 2, `this enters "ch_1" as the outcome of call charge of key ride-1 of scope customer-7 in database "shop" at 127.0.0.1:1`, "add -yes")
}

// An attempt that ends behind a step leaves nothing whose outcome is not known.
func TestProcedureBetweenItsStepsIsInNoCall(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	notNow := errors.New("not now")
	stops := idempotency.Procedure[int, int]{Name: "ride", Run: func(ctx context.Context, op *idempotency.Op, amount int) (int, error) {
		if _, err := idempotency.Step(ctx, op, "create", func(context.Context, pgx.Tx) (int, error) { return 7, nil }); err != nil {
			return 0, err
		}
		return 0, notNow
	}}
	if _, _, err := stops.Do(t.Context(), idempotency.New(pool), idempotency.Key{Scope: "s", ID: "ride"}, 20); !errors.Is(err, notNow) {
		t.Fatal(err)
	}
	r := run(t, on(pool), "get", "s", "ride")
	if r.wantAll(t, 0, "done:", "step create"); strings.Contains(r.stdout, "begun:") || strings.Contains(r.stdout, "attempts:") {
		t.Errorf("%+v", r)
	}
	b := objects(t, run(t, on(pool), "stats", "-json"))[0]["unfinished"].(map[string]any)
	if b["operations"] != 1.0 || b["in_calls"] != 0.0 || b["failed"] != 0.0 {
		t.Errorf("%v", b)
	}
	run(t, on(pool), "stats").wantAll(t, 0, "1, the oldest has not progressed since")
}
