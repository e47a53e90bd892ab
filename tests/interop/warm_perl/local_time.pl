#!/usr/bin/perl
use POSIX qw(strftime tzset mktime);
print strftime("%H %Z", localtime 0), "\n";
$ENV{TZ} = "Asia/Tokyo"; tzset;
print strftime("%H %Z", localtime 0), "\n";
