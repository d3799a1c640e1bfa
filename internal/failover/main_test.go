package failover_test

import (
	"os"
	"testing"

	"github.com/pgidem/idempotency/internal/failover"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(workerEnv); job != "" {
		os.Exit(work(job))
	}
	failover.Main(m)
}
