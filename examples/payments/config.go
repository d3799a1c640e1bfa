package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/pgidem/idempotency/examples/payments/demo"
)

// A config is what an operator can say. Each has a flag; what differs between
// machines, or is secret, has an environment variable too.
type config struct {
	Addr     string        // host:port to listen on; default localhost:8080
	Database string        // connection string of PostgreSQL; required
	Migrate  bool          // run the migrations at the start; default true
	Drain    time.Duration // how long requests may take to finish at the end; default 20s
	Examples bool          // open two accounts with known API keys; default false

	Provider  string        // URL of the card provider; default http://localhost:8090
	Abandoned time.Duration // how long a ride may stand still before the service finishes it; default 5m

	UnsafeNoIdempotency bool // ignore idempotency keys; default false
}

func parseConfig(args []string, getenv func(string) string, usage io.Writer) (cfg config, err error) {
	flags := flag.NewFlagSet("payments serve", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.StringVar(&cfg.Addr, "addr", cmp.Or(getenv("ADDR"), "localhost:8080"), "`host:port` to listen on; also $ADDR")
	// No default that shows: it can hold a password.
	flags.StringVar(&cfg.Database, "database", "", "`connection string` of PostgreSQL; default $DATABASE_URL")
	flags.BoolVar(&cfg.Migrate, "migrate", true, "run the migrations at the start")
	flags.DurationVar(&cfg.Drain, "drain", 20*time.Second, "how long requests may take to finish after SIGTERM")
	flags.BoolVar(&cfg.Examples, "examples", false, "open the accounts alice and bob, with the API keys alice-secret and bob-secret")
	flags.StringVar(&cfg.Provider, "provider", cmp.Or(getenv("PROVIDER_URL"), "http://localhost:8090"), "`URL` of the card provider; also $PROVIDER_URL")
	flags.DurationVar(&cfg.Abandoned, "abandoned", 5*time.Minute, "how long a ride may stand still before the service finishes it; longer than clients wait before they try again")
	flags.BoolVar(&cfg.UnsafeNoIdempotency, "unsafe-no-idempotency", false, "FOR THE DEMO ONLY: ignore idempotency keys, so that a retry charges again")
	flags.SetOutput(io.Discard) // what it says of a wrong flag quotes it
	flags.Usage = func() { flags.SetOutput(usage); flags.PrintDefaults() }
	err = flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return config{}, err
	}
	cfg.Database = cmp.Or(cfg.Database, getenv("DATABASE_URL"))
	switch {
	case err != nil:
		return config{}, errors.New(demo.QuotedError(args, err))
	case flags.NArg() > 0:
		return config{}, errors.New("serve takes flags only, and not " + demo.Quoted(args, flags.Arg(0)))
	case cfg.Database == "":
		return config{}, errors.New("no database: set DATABASE_URL, or -database")
	case cfg.Drain <= 0:
		return config{}, fmt.Errorf("-drain is %v: it has to be longer than nothing", cfg.Drain)
	case cfg.Abandoned <= 0:
		return config{}, fmt.Errorf("-abandoned is %v: it has to be longer than nothing", cfg.Abandoned)
	}
	return cfg, nil
}
