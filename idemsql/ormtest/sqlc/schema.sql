create table charges (id bigint generated always as identity primary key, account text not null, cents bigint not null);
