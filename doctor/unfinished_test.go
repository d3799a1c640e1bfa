package doctor_test

import (
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
)

func TestOperationsThatStandStillAreFoundWithHowLong(t *testing.T) {
	t.Parallel()
	d := setup(t)
	begun := func(id, ago string, attempts int) {
		d.exec(`insert into idempotency_operations (id, scope, number, started_at, due_at, attempts, name, input, progressed_at, labels, results)
			values ('` + id + `', 's', gen_random_uuid(), now(), now(), ` + string(rune('0'+attempts)) + `, 'ride', '1', now() - interval '` + ago + `', '{call charge}', '{}')`)
	}
	begun("young", "59 minutes", 1)
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	begun("a", "61 minutes", 0)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "unfinished", "operations of procedures that have not progressed for an hour: 1, the oldest for 1 h", "run Store.CompleteEvery")
	begun("b", "50 hours", 3)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "unfinished", "for an hour: 2, the oldest for 50 h", "has tried in vain")
	d.exec("revoke all on idempotency_operations from " + d.role)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Note, "privileges", "lacks select, insert, update, delete on", "it cannot run procedures", "grant select, insert, update, delete on")
	d.exec("grant insert, delete on idempotency_operations to " + d.role)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Note, "privileges", "lacks select, update on", "idempotency_operations")
	d.exec("drop table idempotency_operations")
	healthy(t, d.check(d.pool(), idempotency.Config{}))
}

func TestTableOfOperationsOfAStrangerIsNotRead(t *testing.T) {
	t.Parallel()
	d := setup(t)
	stranger := d.role + "_stranger"
	d.exec("create role " + stranger)
	t.Cleanup(func() { d.forget(stranger) })
	d.exec("alter table idempotency_operations owner to " + stranger + "; grant select, insert, update, delete on idempotency_operations to " + d.role)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "unfinished", "nothing of it was read")
}
