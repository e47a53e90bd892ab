#!/usr/bin/perl
BEGIN { umask 027 }
open my $f, '>', 'masked.txt'; close $f;
printf "%04o %03o\n", 07777 & (stat 'masked.txt')[2], umask;
