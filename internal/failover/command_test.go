package failover_test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/failover"
)

func TestCommandDoesNotCallAKeyUnusedOnAStandby(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "idempotency")
	build := exec.Command("go", "build", "-o", binary, "./cmd/idempotency")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := failover.New(t, failover.Options{SynchronousCommit: "remote_apply"})
	key := idempotency.Key{Scope: "test", ID: "recorded"}
	if _, _, err := idempotency.Do(t.Context(), idempotency.New(p.Pool(p.DSN(), 2)), key, execute(key.ID)); err != nil {
		t.Fatal(err)
	}
	get := func(dsn, id string) (exit int, out string) {
		text, err := exec.CommandContext(t.Context(), binary, "get", "-database", dsn, "test", id).CombinedOutput()
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			return e.ExitCode(), string(text)
		} else if err != nil {
			t.Fatal(err)
		}
		return 0, string(text)
	}
	if exit, out := get(p.DSNOf(p.Primary), "none"); exit != 3 {
		t.Errorf("on the primary: exit %d, %s", exit, out)
	}
	if exit, out := get(p.DSNOf(p.Standby), "recorded"); exit != 0 || !strings.Contains(out, "done") {
		t.Errorf("a record on the standby: exit %d, %s", exit, out)
	}
	if exit, out := get(p.DSNOf(p.Standby), "none"); exit != 1 || !strings.Contains(out, "ask the primary") {
		t.Errorf("none on the standby: exit %d, %s", exit, out)
	}
}
