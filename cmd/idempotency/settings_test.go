package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// settings are all that pgx reads: environment variables, and the names of parameters in
// a connection string or a service file. They are taken from its source, so that none is
// forgotten.
func settings(t *testing.T) (variables, parameters []string) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/jackc/pgx/v5").Output()
	if err != nil {
		t.Fatal(err)
	}
	for file, names := range map[string]string{
		"pgconn/config.go": `"(PG[A-Z_]+)":\s+"(\w+)",|"(\w+)":\s+\{\},`,
		"conn.go":          `()RuntimeParams\["(\w+)"\]`,
		"pgxpool/pool.go":  `()RuntimeParams\["(\w+)"\]`,
	} {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(names).FindAllStringSubmatch(string(text), -1) {
			variables, parameters = append(variables, m[1]), append(parameters, m[2:]...)
		}
	}
	sorted := func(all []string) []string {
		slices.Sort(all)
		return slices.DeleteFunc(slices.Compact(all), func(s string) bool { return s == "" })
	}
	variables, parameters = sorted(variables), sorted(append(parameters, "dbname", "search_path"))
	if len(variables) < 25 || len(parameters) < 35 {
		t.Fatal("found only ", variables, parameters)
	}
	return variables, parameters
}

// misplaced are connection strings, and pieces of one, with s3cret in the password.
var misplaced = []string{
	"postgres://u:s3cret@127.0.0.1:1/d", "u:s3cret@127.0.0.1:1/d", "u:a/s3cret@127.0.0.1:1/d", "postgres://u:a@s3cret@127.0.0.1/d", "https://u:s3cret@127.0.0.1",
	"postgres://127.0.0.1:1/d?user=u&password=s3cret", "postgres://u:a,s3cret@127.0.0.1:1/d",
	"host=127.0.0.1 port=1 user=u password=s3cret", "Password='a s3cret'", "sslpassword = s3cret", "//u:s3cret@127.0.0.1", "DATABASE_URL=postgresql://u:s3cret@h/d",
}

// refuses checks that the command fails and prints nothing of the secret.
func refuses(t *testing.T, what string, args ...string) {
	t.Helper()
	exit, said := inProcess(t, append(args, "-timeout", "2s"))
	if exit == 0 || strings.Contains(said, "s3cret") {
		t.Errorf("%s: exit %d: %s", what, exit, said)
	}
}

func clean(t *testing.T, variables []string) {
	t.Helper()
	for _, name := range append(variables, "DATABASE_URL") {
		t.Setenv(name, "")
	}
	os.Unsetenv("PGSSLCERTMODE") // empty is a mistake
	t.Setenv("HOME", t.TempDir())
	t.Setenv("PGHOST", "127.0.0.1")
	t.Setenv("PGPORT", "1")
}

func TestSecretInAVariableOfTheEnvironmentIsNeverPrinted(t *testing.T) {
	variables, _ := settings(t)
	for _, name := range variables {
		clean(t, variables)
		for _, secret := range misplaced {
			t.Setenv(name, secret)
			for _, command := range []string{"list", "migrate up", "migrate down", "doctor"} {
				refuses(t, name+"="+secret, strings.Fields(command)...)
			}
		}
		for _, secret := range []string{"s3cret", "x`: s3cret", "x`: invalid port s3cret"} { // a name can be anything
			if name != "PGHOST" && name != "PGUSER" && name != "PGDATABASE" {
				t.Setenv(name, secret)
				refuses(t, name+"="+secret, "list")
			}
		}
	}
}

func TestSecretInAParameterIsNeverPrinted(t *testing.T) {
	variables, parameters := settings(t)
	clean(t, variables)
	file := filepath.Join(t.TempDir(), "services")
	t.Setenv("PGSERVICEFILE", file)
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	for _, name := range parameters {
		for _, secret := range misplaced {
			refuses(t, name+"="+secret, "list", "-database", "host=127.0.0.1 port=1 "+name+"='"+quote.Replace(secret)+"'")
			if err := os.WriteFile(file, []byte("[s]\n"+name+"="+secret+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PGHOST", "")
			t.Setenv("PGSERVICE", "s")
			refuses(t, "service: "+name+"="+secret, "list")
			t.Setenv("PGSERVICE", "")
			t.Setenv("PGHOST", "127.0.0.1")
		}
	}
}

// An error that quotes nothing has to say all the same where to look.
func TestMistakeInASettingIsNamed(t *testing.T) {
	variables, _ := settings(t)
	for name, says := range map[string]string{
		"PGPORT=x": "invalid port", "PGSSLMODE=x": "failed to configure TLS", "PGSSLROOTCERT=/none": "no such file", "PGSERVICE=none": "failed to read service",
		"PGTARGETSESSIONATTRS=x": "unknown target_session_attrs", "PGMINPROTOCOLVERSION=x": "invalid min_protocol_version", "PGCHANNELBINDING=x": "unknown channel_binding",
		"PGREQUIREAUTH=x": "invalid require_auth", "PGCONNECT_TIMEOUT=x": "invalid connect_timeout", "PGSSLCERTMODE=x": "invalid sslcertmode", "PGPORT=1,2": "could not match",
		"PGUSER=postgres://u:p@h/d": "the user", "PGHOST=u:p@h": "the host", "PGHOST=127.0.0.1,u:p@h": "the host", "PGDATABASE=host=h user=u": "the database", "PGOPTIONS=postgres://h": "options",
		"DATABASE_URL=postgres://127.0.0.1:1/d?user=u@t": "an @ behind its host", "DATABASE_URL=host=127.0.0.1 port=1 x:s=1": "a parameter", "PGUSER=someone@tenant": `as user "someone@tenant"`, "PGAPPNAME=me@here": "cannot connect", "PGDATABASE=My Shop": `database "My Shop"`,
	} {
		clean(t, variables)
		variable, value, _ := strings.Cut(name, "=")
		t.Setenv(variable, value)
		if exit, said := inProcess(t, []string{"list"}); exit == 0 || !strings.Contains(said, says) {
			t.Errorf("%s: exit %d: %s", name, exit, said)
		}
	}
}
