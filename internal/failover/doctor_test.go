package failover_test

import (
	"strings"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/failover"
)

// checks are the severities of what the doctor finds on a server, by its checks.
func checks(t *testing.T, p *failover.Pair, dsn string) map[string]doctor.Severity {
	t.Helper()
	found := make(map[string]doctor.Severity)
	for _, f := range findings(t, p, dsn) {
		found[f.Check] = f.Severity
	}
	return found
}

func findings(t *testing.T, p *failover.Pair, dsn string) []doctor.Finding {
	t.Helper()
	all, err := doctor.Check(t.Context(), p.Pool(dsn, 2), idempotency.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return all
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

// These are settings of a whole server, so the test needs one of its own.
func TestDoctorFindsSettingsThatRiskCommittedKeys(t *testing.T) {
	t.Parallel()
	p := failover.New(t, failover.Options{})
	set := func(setting, value string) {
		t.Helper()
		p.Exec(p.Primary, "alter system set "+setting+" = "+value)
		p.Exec(p.Primary, "select pg_reload_conf()")
		p.Eventually(setting+" is "+value, p.Primary, "select current_setting($1) = $2", setting, value)
	}
	found := func(check, setting string, severity doctor.Severity) (n int) {
		t.Helper()
		for _, f := range findings(t, p, p.DSNOf(p.Primary)) {
			if f.Check == check && f.Severity == severity &&
				strings.Contains(f.Found, setting) && strings.Contains(f.Remedy, setting+" = on") {
				n++
			}
		}
		return n
	}
	if n := found("fsync", "fsync", doctor.Error); n != 1 { // off in every pair
		t.Errorf("fsync is off, and is found %d times", n)
	}
	for setting, check := range map[string]string{
		"full_page_writes": "full_page_writes",
		"autovacuum":       "autovacuum",
		"track_counts":     "autovacuum",
	} {
		set(setting, "off")
		if n := found(check, setting, doctor.Warning); n != 1 {
			t.Errorf("%s is off, and is found %d times", setting, n)
		}
		set(setting, "on")
		if n := found(check, setting, doctor.Warning); n != 0 {
			t.Errorf("%s is on, and is found to be off %d times", setting, n)
		}
	}
}
