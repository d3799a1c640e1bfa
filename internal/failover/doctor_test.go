package failover_test

import (
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/failover"
)

// checks are the severities of what the doctor finds on a server, by its checks.
func checks(t *testing.T, p *failover.Pair, dsn string) map[string]doctor.Severity {
	t.Helper()
	findings, err := doctor.Check(t.Context(), p.Pool(dsn, 2), idempotency.Config{})
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]doctor.Severity)
	for _, f := range findings {
		found[f.Check] = f.Severity
	}
	return found
}

func TestDoctorTellsAStandbyFromItsPrimary(t *testing.T) {
	t.Parallel()
	p := failover.New(t, failover.Options{})
	if found := checks(t, p, p.DSNOf(p.Primary)); found["primary"] != "" || found["standbys"] != "" || found["synchronous_commit"] != "" {
		t.Errorf("on the primary: %v", found)
	}
	if found := checks(t, p, p.DSNOf(p.Standby)); found["primary"] != doctor.Error {
		t.Errorf("on the standby: %v", found)
	}
}

func TestDoctorFindsCommitsThatAFailoverCanLose(t *testing.T) {
	t.Parallel()
	p := failover.New(t, failover.Options{SynchronousCommit: "local"})
	if found := checks(t, p, p.DSNOf(p.Primary)); found["synchronous_commit"] != doctor.Warning {
		t.Errorf("with a COMMIT that does not wait for the standby: %v", found)
	}
	p = failover.New(t, failover.Options{Asynchronous: true})
	if found := checks(t, p, p.DSNOf(p.Primary)); found["standbys"] != doctor.Note {
		t.Errorf("with an asynchronous standby: %v", found)
	}
}
