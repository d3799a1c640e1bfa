package idemhttp_test

import (
	"os"
	"testing"

	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		os.Exit(serveAsProcess())
	}
	pgtest.Main(m)
}
