package doctor_test

import (
	"context"
	"log"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
)

// A program that looks before it serves.
func ExampleCheck() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	store := idempotency.New(pool)
	findings, err := doctor.Check(ctx, pool, store.Config())
	if err != nil {
		log.Fatal(err)
	}
	fit := true
	for _, f := range findings {
		log.Println(f)
		fit = fit && f.Severity != doctor.Error
	}
	if !fit {
		log.Fatal("the database is not fit: not serving")
	}
	// ... serve
}
