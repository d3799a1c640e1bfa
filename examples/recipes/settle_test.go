package recipes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
)

// verdicts of the package's errors, at the first delivery and at the hundredth.
var verdicts = []struct {
	name          string
	err           error
	first, later  verdict
	waits, longer time.Duration
}{
	{"ErrInProgress", idempotency.ErrInProgress, retry, retry, time.Second, time.Minute},
	{"ErrOutcomeUnknown", idempotency.ErrOutcomeUnknown, retry, retry, time.Second, time.Minute},
	{"ErrUnfinished", idempotency.ErrUnfinished, retry, retry, time.Second, time.Minute},
	{"ErrKeyReused", idempotency.ErrKeyReused, deadLetter, deadLetter, 0, 0},
	{"ErrInvalidKey", idempotency.ErrInvalidKey, deadLetter, deadLetter, 0, 0},
	{"ErrAbandoned", idempotency.ErrAbandoned, deadLetter, deadLetter, 0, 0},
	{"ErrTooLarge", idempotency.ErrTooLarge, deadLetter, deadLetter, 0, 0},
	{"ErrUndecodable", idempotency.ErrUndecodable, deadLetter, deadLetter, 0, 0},
	{"ErrStepsChanged", idempotency.ErrStepsChanged, deadLetter, deadLetter, 0, 0},
	{"ErrCallExpired", idempotency.ErrCallExpired, deadLetter, deadLetter, 0, 0},

	// Get returns it, and Do does not. A function may return it as its own error.
	{"ErrNotFound", idempotency.ErrNotFound, retry, deadLetter, time.Second, 0},
}

func TestEveryErrorOfThePackageHasAVerdict(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../*.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := make(map[string]string)
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`(?m)^\s+(Err\w+)\s+= errors\.New\("([^"]+)"\)`).FindAllStringSubmatch(string(source), -1) {
			declared[m[1]] = m[2]
		}
	}
	if len(declared) < 11 {
		t.Fatalf("%d errors were found: is the pattern right?", len(declared))
	}
	for _, v := range verdicts {
		if declared[v.name] != v.err.Error() {
			t.Errorf("%s is not what the table says: %v", v.name, v.err)
		}
		delete(declared, v.name)
	}
	for name := range declared {
		t.Errorf("what does a consumer do for %s? Say it in settle and in verdicts", name)
	}
}

func TestVerdictOfEachError(t *testing.T) {
	t.Parallel()
	pg := func(code string) error { return &pgconn.PgError{Code: code} }
	all := append(verdicts, []struct {
		name          string
		err           error
		first, later  verdict
		waits, longer time.Duration
	}{
		{"no error", nil, acknowledge, acknowledge, 0, 0},
		{"no order", errMalformed, deadLetter, deadLetter, 0, 0},
		{"the function's own", errors.New("out of paper"), retry, deadLetter, time.Second, 0},
		{"a constraint", pg("23514"), retry, deadLetter, time.Second, 0},
		{"a conflict", pg("40001"), retry, retry, time.Second, time.Minute},
		{"too many connections", pg("53300"), retry, retry, time.Second, time.Minute},
		{"shutdown", pg("57P01"), retry, retry, time.Second, time.Minute},
		{"connection failure", pg("08006"), retry, retry, time.Second, time.Minute},
		{"no SQLSTATE", pg(""), retry, deadLetter, time.Second, 0},
		{"not reachable", &net.OpError{Op: "dial", Err: errors.New("refused")}, retry, retry, time.Second, time.Minute},
		{"not connected", &pgconn.ConnectError{}, retry, retry, time.Second, time.Minute},
		{"closed", pgconn.ErrConnClosed, retry, retry, time.Second, time.Minute},
		{"end of file", io.EOF, retry, retry, time.Second, time.Minute},
		{"cut off", io.ErrUnexpectedEOF, retry, retry, time.Second, time.Minute},
		{"stopping", context.Canceled, retry, retry, time.Second, time.Minute},
		{"too slow", context.DeadlineExceeded, retry, retry, time.Second, time.Minute},
	}...)
	for _, v := range all {
		err := v.err
		if _, bare := err.(*pgconn.ConnectError); err != nil && !bare { // that one has no text
			err = fmt.Errorf("wrapped: %w", err)
		}
		if what, after := settle(err, 1); what != v.first || after != v.waits {
			t.Errorf("%s: first %v after %v, want %v after %v", v.name, what, after, v.first, v.waits)
		}
		if what, after := settle(err, 100); what != v.later || after != v.longer {
			t.Errorf("%s: later %v after %v, want %v after %v", v.name, what, after, v.later, v.longer)
		}
	}
}

func TestFunctionThatFailsIsTriedFiveTimes(t *testing.T) {
	t.Parallel()
	own := errors.New("out of paper")
	waits := []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}
	for i, want := range waits {
		if what, after := settle(own, i+1); what != retry || after != want {
			t.Errorf("delivery %d: %v after %v, want %v", i+1, what, after, want)
		}
	}
	if what, _ := settle(own, 5); what != deadLetter {
		t.Errorf("the fifth: %v", what)
	}
	if _, after := settle(idempotency.ErrInProgress, 0); after != time.Second { // a broker that does not count
		t.Errorf("waits %v", after)
	}
}

// What the table says of an outage is what pgx returns.
func TestDatabaseThatIsAwayMakesNoDeadLetters(t *testing.T) {
	t.Parallel()
	pool := database(t)
	config := pool.Config()
	config.ConnConfig.Host, config.ConnConfig.Port, config.ConnConfig.Fallbacks = "127.0.0.1", 1, nil
	away := newPool(t, config)
	_, err := idempotencyDo(t.Context(), idempotency.New(away), "1", charge)
	if what, _ := settle(err, 100); what != retry {
		t.Errorf("%v: %v", err, what)
	}
}

// A consumer that calls a Procedure settles as one that calls Do.
func TestVerdictsOfAProcedureEndInOneCallOfTheProvider(t *testing.T) {
	t.Parallel()
	store := idempotency.New(database(t))
	var keys []string
	pay := idempotency.Procedure[order, receipt]{Name: "pay", Run: func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
		_, err := idempotency.Call(ctx, op, "charge", func(_ context.Context, key string) (string, error) {
			keys = append(keys, key)
			if len(keys) == 1 {
				return "", io.ErrUnexpectedEOF // the answer is lost
			}
			return "paid", nil
		})
		if err != nil {
			return receipt{}, err
		}
		return idempotency.Step(ctx, op, "record", func(ctx context.Context, tx pgx.Tx) (receipt, error) {
			return charge(ctx, tx, orderMessage(in.ID))
		})
	}}
	for delivery, want := range []verdict{retry, acknowledge, acknowledge} {
		_, _, err := pay.Do(t.Context(), store, idempotency.Key{Scope: "pay", ID: "m1"}, order{ID: "order-1"})
		if what, _ := settle(err, delivery+1); what != want {
			t.Errorf("delivery %d: %v, %v", delivery+1, what, err)
		}
	}
	if len(keys) != 2 || keys[0] != keys[1] {
		t.Errorf("the provider got the keys %q", keys)
	}
}
