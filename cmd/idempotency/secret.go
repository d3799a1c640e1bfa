package main

import (
	"flag"
	"regexp"
	"slices"
	"strings"
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
		if f.Name != "database" && (connectionString.MatchString(value) || f.Name != "scope" && strings.Contains(value, "@")) {
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
