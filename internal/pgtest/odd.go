package pgtest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// OddStyles are values for DateStyle and IntervalStyle that a program seldom
// meets, each with one of the other.
var OddStyles = [][2]string{{"SQL, DMY", "sql_standard"}, {"German, MDY", "postgres_verbose"}, {"Postgres, YMD", "iso_8601"}}

// Odd lets new sessions of pool's database show values in another way than most
// do: bytea, times, intervals, numbers with a fraction.
func Odd(t testing.TB, pool *pgxpool.Pool, styles [2]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for name, value := range map[string]string{
		"bytea_output": "escape", "DateStyle": styles[0], "IntervalStyle": styles[1],
		"TimeZone": "Asia/Kathmandu", "extra_float_digits": "-15", "quote_all_identifiers": "on", "array_nulls": "off",
	} {
		if _, err := pool.Exec(ctx, "alter database "+pool.Config().ConnConfig.Database+" set "+name+" = '"+value+"'"); err != nil {
			t.Fatal("pgtest: ", err)
		}
	}
}
