package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/visible"
)

var examine = &command{
	name:    "doctor",
	summary: "look for what endangers the promise, or will hurt",
	text: `It only reads. Run it with the URL that your program has, pooler and role included:
privileges, isolation and timeouts are properties of a connection. With -reader it
examines the role of somebody who looks (get, list, stats) and makes no calls.

An error means that calls fail or can take effect twice, a warning that the promise is
weakened or the table grows, a note is good to know. It exits with 1 if there is an
error, or with -strict a warning.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		db.asIs = true
		reader := fs.Bool("reader", false, "the role only looks, and makes no calls")
		strict := fs.Bool("strict", false, "exit with 1 for warnings, too")
		asJSON := jsonFlag(fs)
		return func(ctx context.Context, std stdio, _ []string) error {
			return db.use(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				check := doctor.Check
				if *reader {
					check = doctor.CheckReader
				}
				findings, err := check(ctx, pool, idempotency.Config{Schema: db.Schema})
				if err := printFindings(std.out, findings, *asJSON); err != nil {
					return err
				}
				if err != nil {
					return err
				}
				return verdict(std, findings, *strict, *asJSON)
			})
		}
	},
}

func printFindings(w io.Writer, findings []doctor.Finding, asJSON bool) error {
	for _, f := range findings {
		var err error
		if asJSON {
			err = jsonLine(w, f)
		} else {
			_, err = fmt.Fprintf(w, "%s: %s: %s\n    to do: %s\n", f.Severity, f.Check, visible.Text(f.Found), visible.Text(f.Remedy))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// verdict is an error where the exit code has to say so.
func verdict(std stdio, findings []doctor.Finding, strict, asJSON bool) error {
	n := make(map[doctor.Severity]int64)
	for _, f := range findings {
		n[f.Severity]++
	}
	var parts []string
	for _, s := range []doctor.Severity{doctor.Error, doctor.Warning, doctor.Note} {
		if n[s] > 0 {
			parts = append(parts, inspect.Plural(n[s], string(s)))
		}
	}
	text := strings.Join(parts, ", ")
	switch {
	case n[doctor.Error] > 0 || strict && n[doctor.Warning] > 0:
		return errors.New("found " + text)
	case asJSON:
		return nil
	case text == "":
		text = "healthy: nothing found"
	default:
		text = "no errors: found " + text
	}
	_, err := fmt.Fprintln(std.out, text)
	return err
}
