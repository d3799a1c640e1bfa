drop table rides;
