package keytable

// CitusSQL is true where Citus is loaded. Only there may its catalog, pg_dist_partition, be
// named in a statement: elsewhere there is none.
const CitusSQL = `current_setting('citus.cluster_name'::text, true) is not null`
