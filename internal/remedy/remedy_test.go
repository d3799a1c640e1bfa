package remedy_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/internal/remedy"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestNoRemedyForAPlanThatIsOutOfDate(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, sql := range []string{"prepare get as select * from idempotency_keys", "execute get", "alter table idempotency_keys add more int"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	_, err = conn.Exec(t.Context(), "execute get")
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != remedy.NotSupported {
		t.Fatalf("got %v", err)
	}
	if got := remedy.Of(err, "public"); got != err {
		t.Errorf("got %v", got)
	}
}

func TestRemedyIsAddedOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	_, err := pool.Exec(t.Context(), "select from idempotency_keys")
	once := fmt.Errorf("reading: %w", remedy.Of(err, ""))
	if once.Error() == "reading: "+err.Error() || remedy.Of(once, "") != once {
		t.Errorf("got %v, and then %v", once, remedy.Of(once, ""))
	}
	if !errors.Is(once, err) {
		t.Error("the server's error is no longer in it")
	}
}

func TestRemedyNamesOnlyTheTableThatIsMeant(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for sql, want := range map[string]bool{
		"select from nowhere.idempotency_keys":                true,
		"select 'nowhere.idempotency_keys'::regclass":         true,
		"select nothing from idempotency_keys":                true,
		"select from tenants":                                 false,
		"select from elsewhere.tenants":                       false,
		"do $$ begin perform * from idempotency_key2; end $$": false,
		"select 1/0": false,
	} {
		_, err := pool.Exec(t.Context(), sql)
		if got := remedy.Of(err, "nowhere") != err; err == nil || got != want {
			t.Errorf("%s: a remedy: %v; %v", sql, got, err)
		}
	}
}
