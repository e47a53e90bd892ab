#!/usr/bin/perl
use POSIX qw(strftime floor setlocale LC_ALL :sys_wait_h _exit);
print floor(-1.5), " ", strftime("%Y-%m-%d", gmtime 0), " ", setlocale(LC_ALL), "\n";
print STDOUT "flushed not";
POSIX::_exit(6);
