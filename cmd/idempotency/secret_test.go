package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// inProcess runs the command, where no database can be reached by accident.
func inProcess(t *testing.T, args []string) (exit int, said string) {
	t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out bytes.Buffer
	exit = run(t.Context(), stdio{in, &out, &out}, args)
	return exit, out.String()
}

// oddStrings are connection strings with s3cret in the password.
func oddStrings() (all []string) {
	for _, password := range []string{
		"s3cret", "a s3cret", "a s3cret b", "s3cret/x", "12/s3cret", "a@s3cret", "a@s3cret#x", "a@s3cret?x=y", "52341/s3cret?x", "52341/s3cret?x=y", "52341/s3cret?x=y&z", "52341/s3cret#x", "52341/s3cret?application_name=x", "a?s3cret", "12?s3cret=1", "a#s3cret", "12#s3cret", "a`: s3cret", "'s3cret",
		`\s3cret`, "a=s3cret", "%s3cret", "s3cret b=1", "x s3cret=1", "[s3cret", "s3cret]:1", "a\ns3cret", "a\x1b[31ms3cret", ":s3cret", "@s3cret", "-s3cret", "&s3cret=",
	} {
		for _, form := range []string{
			"postgres://u:%s@127.0.0.1:1/d", "postgresql://u:%s@127.0.0.1:1,127.0.0.1:2/d", "POSTGRES://u:%s@127.0.0.1:1/d", "postgres://u:%s@127.0.0.1:x/d?sslmode=y",
			"postgres://127.0.0.1:1/d?user=u&password=%s", "postgres://u:%s@127.0.0.1:1/d?pool_max_conns=x", "https://u:%s@127.0.0.1:1/d",
			"host=127.0.0.1 port=1 user=u password=%s dbname=d", "host=127.0.0.1 port=1 user=u password='%s'", "password = '%s' host=127.0.0.1 port=1",
			"u:%s@127.0.0.1:1/d", "DATABASE_URL=postgres://u:%s@127.0.0.1:1/d", "psql postgres://u:%s@127.0.0.1:1/d",
		} {
			all = append(all, fmt.Sprintf(form, password))
		}
	}
	return all
}

// oddLines are command lines that have the string in some place.
func oddLines(command []string, s string) [][]string {
	line := func(more ...string) []string { return slices.Concat(command, more) }
	lines := [][]string{
		line(s), slices.Concat([]string{s}, command), line("--", s), line("-x=" + s), line("-x", s), line(s, s, s), line("-" + s),
		line("-databse", s), line("-schema", s), line("-schema=" + s), line("-timeout", s), line("-schema", "-database", s),
		line("-after", s), line("-state", s), line("-newer=" + s), line("-limit", s), line("-sample", s), line("-every", s), line("-yes", s), line("-json=" + s),
		line(append([]string{"-timeout", "1s", "-database"}, strings.Fields(s)...)...), // without quotes
		line("-timeout", "1s", "-database", s), line("-timeout", "1s", "-database="+s), line("-timeout", "1s", "--database", s, "extra"),
	}
	if !strings.HasPrefix(s, "u:") { // it can be a scope
		lines = append(lines, line("-scope", s), line(s, "key"), line("scope", s), line("-id", s), line("-prefix", s))
	}
	return lines
}

func TestSecretInAnOddCommandLineIsNeverPrinted(t *testing.T) {
	for _, name := range []string{"DATABASE_URL", "PGDATABASE", "PGSERVICE", "PGPASSWORD", "PGUSER"} {
		t.Setenv(name, "")
	}
	t.Setenv("PGHOST", "127.0.0.1")
	t.Setenv("PGPORT", "1")
	lines, leaks := 0, 0
	for _, command := range []string{"get", "find", "help", "list", "delete -yes", "delete", "settle -yes", "settle", "stats", "purge -once", "purge -every 1h", "doctor", "migrate", "migrate up", "migrate down -yes", "migrate version", "migrate sql", ""} {
		for i, s := range oddStrings() {
			for j, line := range oddLines(strings.Fields(command), s) {
				if command != "list" && command != "get" && (i+j)%5 > 0 { // they differ little
					continue
				}
				lines++
				exit, said := inProcess(t, line)
				if strings.Contains(said, "s3cret") || strings.ContainsRune(said, '\x1b') {
					leaks++
					t.Errorf("%q: %s", line, said)
				}
				if exit == 0 {
					t.Errorf("%q: exit 0", line)
				}
				if leaks > 20 {
					t.Fatal("and so on")
				}
			}
		}
	}
	t.Log(lines, "command lines")
}

// A refusal must not be in the way of those who type what is right.
func TestNoScopeKeyOrFlagIsTakenForAConnectionString(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d")
	for _, text := range []string{
		"customer-7", "charge/order-1", "a@example.com", "user:1@eu", "https://example.com/x?y=z", "https://medium.com/@user", "urn:uuid:018f", "a=b", "port=1",
		"host=a", "key: value", "über", "-", "postgres", "passwords",
	} {
		for _, line := range [][]string{{"get", text, "k"}, {"get", "s", text}, {"list", "-scope", text}, {"find", "--", text}, {"list", "-id", text}, {"list", "-prefix", text}, {"delete", "-yes", text, text}, {"settle", "-yes", "s", "k", text, "1"}, {"settle", "-yes", "s", "k", "c", strconv.Quote(text)}} {
			if exit, said := inProcess(t, line); exit != exitFailed || !strings.Contains(said, "cannot connect") {
				t.Errorf("%q: exit %d, %s", line, exit, said)
			}
		}
	}
}

// A refusal must not be in the way of a connection string that pgx reads as it is meant.
func TestConnectionStringThatIsClearIsUsed(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	t.Setenv("PGUSER", "u")
	for _, s := range []string{
		"postgres://127.0.0.1:1/d", "postgres://127.0.0.1:1", "postgres://u@127.0.0.1:1", "postgresql://u:p@127.0.0.1:1,127.0.0.1:1/d?sslmode=disable&shop.tenant=x",
		"postgres://u:p%40%2F%3Fx@127.0.0.1:1/d?application_name=me%40here", "postgres://u:p@/d?host=127.0.0.1&port=1", "host=127.0.0.1 port=1 user=u@tenant password='a@b://c@d'",
	} {
		if exit, said := inProcess(t, []string{"list", "-timeout", "1s", "-database", s}); exit != exitFailed || !strings.Contains(said, "cannot connect") {
			t.Errorf("%q: exit %d, %s", s, exit, said)
		}
	}
}
