package doctor_test

import (
	"strings"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
)

func TestTableThatInheritsFromTheTableIsNamed(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(`create table "Old keys" () inherits (idempotency_keys)`)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "inheritance", `"public"."Old keys" inherits from "public"."idempotency_keys"`, "no inherit")
}

func TestPartitionsAndParentsAreNoFinding(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(partitioned)
	for _, f := range d.check(d.pool(), idempotency.Config{}) {
		t.Errorf("partitions: %v", f)
	}
	d = setup(t)
	d.exec(`create table everything (scope text collate "C" not null); alter table idempotency_keys inherit everything`)
	for _, f := range d.check(d.pool(), idempotency.Config{}) {
		t.Errorf("a parent: %v", f)
	}
}

func TestPublicationWithoutAReplicaIdentityIsAnError(t *testing.T) {
	t.Parallel()
	const recorded = "update idempotency_keys set completed_at = now()"
	const onlyUnique = "alter table idempotency_keys drop constraint idempotency_keys_pkey; create unique index keys on idempotency_keys (id, scope);"
	for name, c := range map[string]struct {
		sql    string
		change string // by a program
		error  bool
	}{
		"the primary key":           {"create publication p for all tables", recorded, false},
		"no primary key":            {onlyUnique + "create publication p for table idempotency_keys", recorded, true},
		"no primary key, deletes":   {onlyUnique + "create publication p for table idempotency_keys with (publish = 'delete')", "delete from idempotency_keys", true},
		"no primary key, inserts":   {onlyUnique + "create publication p for table idempotency_keys with (publish = 'insert')", recorded, false},
		"full":                      {onlyUnique + "alter table idempotency_keys replica identity full; create publication p for all tables", recorded, false},
		"another index":             {onlyUnique + "alter table idempotency_keys alter id set not null, alter scope set not null, replica identity using index keys; create publication p for all tables", recorded, false},
		"nothing":                   {"alter table idempotency_keys replica identity nothing; create publication p for all tables", recorded, true},
		"an index that was dropped": {"create unique index other on idempotency_keys (scope, id); alter table idempotency_keys replica identity using index other; drop index other; create publication p for all tables", recorded, true},
		"a partition":               {partitioned + "alter table keys_0 replica identity nothing; create publication p for table idempotency_keys", recorded, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			d.exec(c.sql)
			_, err := d.pool().Exec(t.Context(), c.change)
			if c.error != (err != nil) {
				t.Errorf("%s: %v", c.change, err)
			}
			noted := false
			for _, f := range d.check(d.pool(), idempotency.Config{}) {
				noted = noted || f.Severity == doctor.Note && strings.Contains(f.Found, `is published, by "p"`)
			}
			if !noted {
				t.Error("that records are published is not noted")
			}
			d.exec("comment on publication p is 'idempotency: wanted'")
			findings := d.check(d.pool(), idempotency.Config{})
			if !c.error {
				healthy(t, findings)
				return
			}
			wants(t, findings, doctor.Error, "publication", `the publication "p"`, "replica identity")
		})
	}
}
