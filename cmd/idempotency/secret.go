package main

import (
	"errors"
	"flag"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// A command line can have a connection string in the wrong place, as in 'list
// "$DATABASE_URL"', or cut in two at a space of its password. It has a password then,
// and nobody can tell where that begins and ends. So nothing of it is printed, which
// an error would do: it gets into logs.

// connectionString is what can hardly be anything else. A scope or a key can be
// user:password@host, and then is none.
var connectionString = regexp.MustCompile(`(?i)postgres(ql)?:|://[^/?#]*@|pass(word|wd|phrase)\s*=|` +
	`\b(host|hostaddr|port|user|dbname|service|sslmode)\s*=.*\b(host|hostaddr|port|user|dbname|service|sslmode)\s*=`)

// elsewhere is the mistake of a connection string that stands where it does not
// belong. It is empty if none does.
func elsewhere(fs *flag.FlagSet, words []string) (where string) {
	if slices.ContainsFunc(words, connectionString.MatchString) {
		where = "an argument"
	}
	fs.Visit(func(f *flag.Flag) {
		value := f.Value.String()
		ofKeys := f.Name == "scope" || f.Name == "id" || f.Name == "prefix" // where an address may stand
		if f.Name != "database" && (connectionString.MatchString(value) || !ofKeys && strings.Contains(value, "@")) {
			where = "-" + f.Name
		}
	})
	return where
}

// mayHaveSecret: one of them is a connection string, or a piece of one.
func mayHaveSecret(args []string) bool {
	all := strings.Join(args, " ")
	return strings.Contains(all, "@") || connectionString.MatchString(all)
}

const useDatabase = "give it as -database URL, in quotes, or in DATABASE_URL"

// mistakes are what pgx says of a setting before it quotes the value.
var mistakes = regexp.MustCompile(`^(failed to parse as (URL|keyword/value)|failed to (read service|configure TLS)|could not match|pool_max_conns too small|` +
	`min_protocol_version cannot be greater than max_protocol_version|(invalid|unknown|cannot parse) ` +
	`(port|sslcertmode|connect_timeout|target_session_attrs|min_protocol_version|max_protocol_version|channel_binding|require_auth|` +
	`default_query_exec_mode|statement_cache_capacity|description_cache_capacity|pool_(max|min|health|ping)_[a-z_]+))`)

// unreadable says what is wrong with a connection string, or with a setting, without
// quoting it: where it is malformed, nobody can tell the password from the rest.
func unreadable(err error) string {
	const form = "expected postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters percent-encoded"
	text := err.Error() // cannot parse `STRING`: WHAT (WHY), where WHAT and WHY can quote a setting
	what := ""
	if i := strings.LastIndex(text, "`: "); i >= 0 {
		what = mistakes.FindString(text[i+len("`: "):])
	}
	if file, ok := errors.AsType[*fs.PathError](err); ok { // of a certificate, or a key
		what = strings.TrimPrefix(what+": "+file.Err.Error()+" (sslrootcert, sslcert, sslkey)", ": ")
	}
	return strings.TrimPrefix(what+": "+form, ": ")
}

// misread says in which setting of text a connection string stands, or the rest of a
// password. It must not be sent or printed, which the errors of the server do as well. A
// user can be one of a tenant, user@tenant, as some services have it.
func misread(text string, cfg *pgconn.Config) string {
	hosts := []string{cfg.Host}
	for _, other := range cfg.Fallbacks {
		hosts = append(hosts, other.Host)
	}
	field := ""
	switch {
	case ambiguous(text):
		field = "the URL, which has an @ behind its host"
	case slices.ContainsFunc(hosts, hasAt) || slices.ContainsFunc(hosts, connectionString.MatchString):
		field = "the host"
	case hasAt(cfg.Database) || connectionString.MatchString(cfg.Database):
		field = "the database"
	case userOfURL.MatchString(cfg.User) || connectionString.MatchString(cfg.User):
		field = "the user"
	}
	params := cfg.RuntimeParams
	if field == "" && (slices.ContainsFunc(slices.Collect(maps.Values(params)), connectionString.MatchString) ||
		slices.ContainsFunc(slices.Collect(maps.Keys(params)), func(name string) bool { return !parameterName.MatchString(name) })) {
		field = "a parameter, such as options or application_name"
	}
	if field == "" {
		return ""
	}
	return "a connection string, or a part of a password, stands in " + field + ": give a connection string in DATABASE_URL or -database, and in its password write %40 for @ and %2F for /"
}

// ambiguous reports whether a URL has an @ behind its host. A URL has one @ that ends the
// user and the password. A later one can be part of a password with a / in it, which pgx
// has then taken for the host, the port, the database and the parameters.
func ambiguous(text string) bool {
	scheme, rest, isURL := strings.Cut(text, "://")
	if !isURL || scheme != "postgres" && scheme != "postgresql" { // as pgx tells it from keywords and values
		return false
	}
	host := rest[strings.LastIndex(rest, "@")+1:]
	end := strings.IndexAny(rest, "/?#")
	return end >= 0 && len(rest)-len(host) > end
}

// parameterName is what the name of a parameter of PostgreSQL looks like. Another one can
// be the rest of a password.
var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$.]*$`)

func hasAt(s string) bool { return strings.Contains(s, "@") }

var userOfURL = regexp.MustCompile(`://|[:/].*@`)
