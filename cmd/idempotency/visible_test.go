package main_test

import (
	"strings"
	"testing"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// oddText can clear a terminal, turn what follows around, or hide in it.
const oddText = "a\x1b[2J\u202eb\u2066\u200e\u0085\x7f\u200b\ufeff\U000e0041\u00a0\ufffd\u3164\uffa0\u115f\u2800\u034f\ufe0fü\\\""

func wantVisible(t *testing.T, what string, r result) {
	t.Helper()
	for _, c := range r.stdout + r.stderr {
		if c != '\n' && (!unicode.IsPrint(c) || strings.ContainsRune("\u3164\uffa0\u115f\u2800\u034f\ufe0f", c)) {
			t.Errorf("%s prints %U: %+q, %+q", what, c, r.stdout, r.stderr)
			return
		}
	}
}

func TestTextsOfClientsCannotHarmATerminalInAnyOutput(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, oddText, oddText, map[string]string{oddText: oddText})
	if _, err := pool.Exec(t.Context(), "update idempotency_keys set origin = $1", oddText); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"get", oddText, oddText}, {"get", oddText, oddText, "-show-result"}, {"get", oddText, oddText, "-show-result", "-json"},
		{"find", oddText}, {"find", oddText, "-json"}, {"list", "-id", oddText}, {"list"}, {"list", "-show-result"}, {"list", "-show-result", "-json"}, {"stats"}, {"stats", "-json"},
	} {
		r := run(t, on(pool), args...)
		r.wantAll(t, 0)
		wantVisible(t, strings.Join(args, " "), r)
		if args[len(args)-1] == "-json" && args[0] != "stats" && args[0] != "find" {
			o := objects(t, r)[0]
			if o["scope"] != oddText || o["id"] != oddText || o["origin"] != oddText || o["result"].(map[string]any)[oddText] != oddText {
				t.Errorf("%v: a program does not get the same text: %+q", args, o)
			}
		}
	}
	for _, args := range [][]string{{"get", oddText, "none"}, {"get", oddText, "none", "-json"}, {"delete", oddText, oddText}, {"find", oddText + "x"}, {"help", oddText}, {"delete", oddText, oddText, "-yes", "-json"},
		{"list", "-schema", oddText}, {"doctor", "-schema", oddText}, {"list", "-state", oddText}, {oddText}, {"list", oddText}, {"list", "-" + oddText},
		{"purge", "-once", "-schema", oddText}, {"migrate", "version", "-schema", oddText}} {
		wantVisible(t, strings.Join(args, " "), run(t, on(pool), args...))
	}
}

func TestKeyWithoutARecordHasNoBytes(t *testing.T) {
	t.Parallel()
	r := run(t, on(pgtest.New(t)), "get", "s", "none", "-json")
	r.wantAll(t, 3, `"result_bytes":0}`)
}

// Whoever may make a trigger chooses its name, and an administrator reads it.
func TestNamesInTheDatabaseCannotHarmATerminalThroughTheDoctor(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	name := pgx.Identifier{"x\x1b[2J\u202e\u200b"}.Sanitize()
	do(t, pool, "create function "+name+"() returns trigger language plpgsql as 'begin return new; end'")
	do(t, pool, "create trigger "+name+" before update on idempotency_keys for each row execute function "+name+"()")
	do(t, pool, "create schema "+name)
	do(t, pool, "grant create on schema "+name+" to public")
	env := []string{"DATABASE_URL=" + with(pool, "search_path", "public,"+name)}
	for _, args := range []string{"doctor", "doctor -json"} {
		r := run(t, env, strings.Fields(args)...)
		wantVisible(t, args, r)
		r.wantAll(t, 0, "trigger", `\u202e`)
	}
	findings, err := doctor.Check(t.Context(), pool, idempotency.Config{})
	if err != nil || len(findings) == 0 {
		t.Fatal(findings, err)
	}
	for _, f := range findings {
		wantVisible(t, "Finding.String", result{stdout: f.String()})
	}
}

// In such a session a backslash escapes the quote behind it.
func TestNameOfASchemaIsNeverSQL(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, schema := range []string{`x\'y`, `x\`, `\' or '1'='1`} {
		run(t, on(pool), "migrate", "up", "-schema", schema).wantAll(t, 0, "up to date")
		for _, conforming := range []string{"on", "off"} {
			env := []string{"DATABASE_URL=" + with(pool, "standard_conforming_strings", conforming)}
			for _, args := range []string{"list", "stats", "doctor", "purge -once", "migrate version"} {
				run(t, env, append(strings.Fields(args), "-schema", schema)...).wantAll(t, 0)
			}
			run(t, env, "get", "s", "none", "-schema", schema).wantLine(t, 3, "no record")
		}
	}
}
