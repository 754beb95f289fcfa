// @ts-check
/** The addresses of a course's pages of one student, one cell, one error. */

/** @param {string} courseId */
export const boardPath = (courseId) => `/courses/${encodeURIComponent(courseId)}`;
/** @param {string} courseId @param {string} userId */
export const studentPath = (courseId, userId) => `${boardPath(courseId)}/students/${encodeURIComponent(userId)}`;
/** @param {string} courseId @param {string} notebookId @param {string} cellId */
export const cellPath = (courseId, notebookId, cellId) => `${boardPath(courseId)}/cells/${notebookId}/${encodeURIComponent(cellId)}`;
/** @param {string} courseId @param {string} fingerprint */
export const errorPath = (courseId, fingerprint) => `${boardPath(courseId)}/errors/${fingerprint}`;
