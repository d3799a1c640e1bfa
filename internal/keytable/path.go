package keytable

import (
	"context"
	"strings"
)

const pathSQL = `show search_path`

// Shadowing returns the search_path of the session if it names pg_catalog behind another
// schema, and else no text. There, an operator or function of that schema with the very
// types is preferred to PostgreSQL's, so no statement is safe but one like this, that has
// neither.
func Shadowing(ctx context.Context, q Querier, options ...any) (path string, err error) {
	if err := q.QueryRow(ctx, pathSQL, options...).Scan(&path); err != nil {
		return "", err
	}
	names := pathNames(path)
	for _, name := range names[1:] {
		if name == "pg_catalog" && names[0] != name {
			return path, nil
		}
	}
	return "", nil
}

// pathNames are the schemas of a search_path. An empty one has one, whose name is empty.
func pathNames(path string) (names []string) {
	for rest, more := path, true; more; {
		rest = strings.TrimSpace(rest)
		name := ""
		if strings.HasPrefix(rest, `"`) {
			for rest = rest[1:]; ; { // a quote in a name is doubled
				part, behind, _ := strings.Cut(rest, `"`)
				name, rest = name+part, behind
				if !strings.HasPrefix(rest, `"`) {
					break
				}
				name, rest = name+`"`, rest[1:]
			}
			_, rest, more = strings.Cut(rest, ",")
		} else {
			name, rest, more = strings.Cut(rest, ",")
			name = strings.ToLower(strings.TrimSpace(name))
		}
		names = append(names, name)
	}
	return names
}

// ShadowingRemedy is what to do about it.
const ShadowingRemedy = "take pg_catalog out of the search_path of the connection string, the role and the database: it is then searched first"
