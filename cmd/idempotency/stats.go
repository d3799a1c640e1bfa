package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/inspect"
)

var stats = &command{
	name:    "stats",
	summary: "sizes, arrivals, scopes, what has expired, and who holds a key now",
	text: `A large table is sampled, and what rests on a sample is marked with ~; -exact reads all
of it. Replays are not stored: what is counted are keys that took effect, once each, as
far as they are not purged yet. With -every it goes on, after a lost connection too,
-timeout is for each round, and it ends with exit code 0 when it is interrupted.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		exact := fs.Bool("exact", false, "read the whole table")
		sample := fs.Int64("sample", 20_000, "read about so many `pages` of 8 kB of a larger table")
		scopes := fs.Int("scopes", 10, "list so many of the largest `scopes`")
		var every age
		fs.Var(&every, "every", "go on, and look again after this `time`, such as 2s")
		asJSON := jsonFlag(fs)
		return func(ctx context.Context, std stdio, _ []string) error {
			if *scopes < 0 {
				return usageError{fmt.Sprintf("-scopes %d: it has to be 0 or more", *scopes), true}
			}
			if *sample < 1 {
				return usageError{fmt.Sprintf("-sample %d: it has to be 1 or more", *sample), true}
			}
			if *exact {
				*sample = math.MaxInt64
			}
			w := watch{database: db, std: std, every: time.Duration(every), asJSON: *asJSON}
			w.look = func(ctx context.Context, pool *pgxpool.Pool) (s statistic, err error) {
				err = db.Reading(ctx, pool, func(tx pgx.Tx) error {
					s.Statistic, err = db.Statistics(ctx, tx, *sample, *scopes)
					return err
				})
				return s, err
			}
			return w.run(ctx)
		}
	},
}

// A statistic is what one run found.
type statistic struct{ inspect.Statistic }

func (s statistic) print(w io.Writer) error {
	for _, section := range []func() (string, [][]string){s.totals, s.hours, s.largest, s.inProgress} {
		title, lines := section()
		if _, err := fmt.Fprintln(w, title); err != nil {
			return err
		}
		for i := range lines {
			lines[i][0] = "  " + lines[i][0]
		}
		if err := fitted(w, lines, 0); err != nil {
			return err
		}
	}
	return nil
}

// about is a count, marked if it is an estimate.
func (s statistic) about(n int64) string {
	if s.Estimated {
		return "~" + inspect.Count(n)
	}
	return inspect.Count(n)
}

func (s statistic) totals() (string, [][]string) {
	title := "Records"
	if s.Estimated {
		title += fmt.Sprintf(" (~ is estimated from %.2g %% of the table; -exact reads all)", s.SampledPercent)
	}
	dead := "~" + inspect.Count(s.DeadRows) + ", never autovacuumed"
	if s.LastAutovacuum != nil {
		dead = "~" + inspect.Count(s.DeadRows) + ", autovacuumed " + s.LastAutovacuum.Relative(s.Now)
	}
	lines := [][]string{
		{"keys", s.about(s.Keys)},
		{"of them expired", s.about(s.Expired)},
	}
	if s.OldestExpired != nil {
		lines = append(lines, []string{"oldest expired", s.OldestExpired.In(s.Now)})
	}
	if s.Unfinished != nil && s.Unfinished.Operations > 0 {
		lines = append(lines, []string{"unfinished", backlogText(s.Unfinished, s.Now)})
	}
	if s.Abandoned > 0 {
		lines = append(lines, []string{"abandoned", s.about(s.Abandoned) + " (list -state abandoned)"})
	}
	lines = append(lines, []string{"size", inspect.Size(s.TableBytes+s.IndexBytes+s.ToastBytes) +
		": table " + inspect.Size(s.TableBytes) + ", indexes " + inspect.Size(s.IndexBytes) + ", TOAST " + inspect.Size(s.ToastBytes)})
	if s.Keys > 0 {
		perKey := fmt.Sprintf("%.0f B", s.BytesPerKey)
		if s.Estimated {
			perKey = "~" + perKey
		}
		lines = append(lines, []string{"size per key", perKey})
	}
	return title, append(lines, []string{"dead rows", dead})
}

// barWidth is of the hour with the most arrivals.
const barWidth = 40

func (s statistic) hours() (string, [][]string) {
	var most int64
	for _, a := range s.Arrivals {
		most = max(most, a.Keys)
	}
	var lines [][]string
	for _, a := range s.Arrivals {
		bar := strings.Repeat("#", int(a.Keys*barWidth/max(most, 1)))
		lines = append(lines, []string{a.Hour.Format("2006-01-02 15:00Z"), s.about(a.Keys), bar})
	}
	return s.headed("Arrivals by the hour, last 24 hours (first calls still in the table; replays are not stored)", lines)
}

func (s statistic) largest() (string, [][]string) {
	var lines [][]string
	for _, c := range s.Scopes {
		lines = append(lines, []string{inspect.Plain(c.Scope), s.about(c.Keys)})
	}
	title := "Scopes"
	switch {
	case s.Estimated:
		title = fmt.Sprintf("Largest scopes (of %s or more)", inspect.Count(s.ScopeCount))
	case s.ScopeCount > int64(len(s.Scopes)):
		title = fmt.Sprintf("Largest scopes (of %s)", inspect.Count(s.ScopeCount))
	}
	return s.headed(title, lines)
}

func (s statistic) inProgress() (string, [][]string) {
	var lines [][]string
	for _, h := range s.Holders {
		doing := "in progress"
		switch {
		case h.Replicating():
			doing = "committing, waits for a synchronous standby"
		case !h.Writing:
			doing = "replaying, or just begun"
		}
		lines = append(lines, []string{h.String() + ":", inspect.Plural(h.Keys, "key"), doing})
	}
	return s.headed("Transactions that hold a key now", lines)
}

func (s statistic) headed(title string, lines [][]string) (string, [][]string) {
	if len(lines) == 0 {
		return title + ": none", nil
	}
	return title, lines
}
